"""From episodes to batches: which samples a step sees, in which order, changed how."""
