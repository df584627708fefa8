"""Films of rollouts: their drawings around the picture, and films of several episodes."""
