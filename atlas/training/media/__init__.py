"""What training shows beyond scalars: figures, distributions and films, each with a switch and an interval."""
