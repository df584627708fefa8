"""A small learned correction of a policy that stays as it is."""
