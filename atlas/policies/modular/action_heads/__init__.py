"""Action heads: from fused tokens to a chunk of actions, and the loss."""
