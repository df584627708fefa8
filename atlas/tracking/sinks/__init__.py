"""Where what is logged goes."""
