"""Media that training shows besides scalars: figures, distributions and films, each with a switch and an interval."""
