"""Reading runs back, and comparing them."""

from atlas.runs.scalars import read_scalars

__all__ = ["read_scalars"]
