"""Learning from what the present policy has just played: PPO and GRPO, and what they share."""
