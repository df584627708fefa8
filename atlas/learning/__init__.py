"""Learning from experience: a policy acts, and is trained on what came of it."""
