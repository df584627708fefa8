"""Guards that end, skip or refuse training."""
