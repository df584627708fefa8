"""Learning in rounds: what was played and is worth it is imitated, by the trainer that made the policy."""
