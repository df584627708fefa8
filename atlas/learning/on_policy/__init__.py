"""On-policy learning: PPO, GRPO and their common parts."""
