"""Language encoders: from instructions to tokens."""
