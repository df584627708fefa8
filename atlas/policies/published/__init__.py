"""What LeRobot's published policies have in common: their folders, weights, numbers, pictures and flow matching."""
