"""Checks of a policy that acts: does it answer as it did, and is it shown what it was trained on."""
