"""Learning in rounds: selected episodes are imitated, by the trainer that trained the policy."""
