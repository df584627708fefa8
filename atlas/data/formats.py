"""Opens a dataset of any known format."""

from __future__ import annotations

from pathlib import Path

from atlas.data.episode import EpisodeDataset
from atlas.data.libero import LiberoDataset
from atlas.data.orientation import Orientation


def open_dataset(path: str | Path, orientation: Orientation | None = None, drop_noops: bool = False) -> EpisodeDataset:
    """Open the episodes at `path`; every format gives the same interface.

    orientation: which way up the source stores its images (None: as its format has it); images come out upright.
    drop_noops: leave out frames whose action does nothing.
    Raises InputError that names what is missing or damaged.
    """
    return LiberoDataset(Path(path).expanduser(), orientation, drop_noops)
