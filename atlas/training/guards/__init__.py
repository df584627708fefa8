"""What ends, skips or refuses training."""
