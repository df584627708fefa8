"""What learning by reward shows besides scalars: what it thinks along an episode, and where it has been."""
