"""Vision encoders: from camera images to tokens."""
