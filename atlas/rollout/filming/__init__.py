"""How rollouts are filmed: what a film shows beside the picture, and films of several episodes."""
