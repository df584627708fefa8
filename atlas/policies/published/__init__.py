"""The parts that LeRobot's published policies share: folders, weights, scaling, images and flow matching."""
