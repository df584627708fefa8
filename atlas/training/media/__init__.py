"""Media that training logs besides scalars: figures, distributions and films, each with a switch and an interval."""
