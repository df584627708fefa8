"""Writing datasets in LeRobot's format."""
