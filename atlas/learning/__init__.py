"""Learning from experience: a policy acts, and is trained on the results."""
