"""Boards of learning by reward besides scalars: what it thinks along an episode, and where it has been."""
