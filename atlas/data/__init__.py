"""Episodes on disk, and the way from them to batches."""

from atlas.data.formats import open_configured, open_dataset

__all__ = ["open_configured", "open_dataset"]
