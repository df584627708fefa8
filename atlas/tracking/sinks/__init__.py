"""The sinks to which what is logged goes."""
