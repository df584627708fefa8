"""A small learned correction of a frozen policy."""
