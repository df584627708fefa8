"""Episodes on disk, and the way from them to batches."""

from atlas.data.formats import open_dataset

__all__ = ["open_dataset"]
