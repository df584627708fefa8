"""The cost of a step, and means to make it cheaper."""
