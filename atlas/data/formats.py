"""Opens a dataset of any known format."""

from __future__ import annotations

from pathlib import Path

from atlas.config import DataConfig
from atlas.data.episode import EpisodeDataset
from atlas.data.libero import LiberoDataset
from atlas.data.orientation import Orientation
from atlas.errors import InputError


def open_configured(config: DataConfig) -> tuple[EpisodeDataset, list[str]]:
    """The dataset that a config names, and which of its cameras are used, in order.

    Raises InputError as `open_dataset`, and where the config names a camera that the dataset does not have.
    """
    orientation = None if config.orientation == "auto" else config.orientation
    dataset = open_dataset(config.path, orientation, config.drop_noops)
    unknown = [camera for camera in config.cameras or [] if camera not in dataset.cameras]
    if unknown:
        raise InputError(f"data.cameras names {unknown}, and {dataset.path} has the cameras {dataset.cameras}.")
    return dataset, config.cameras or dataset.cameras


def open_dataset(path: str | Path, orientation: Orientation | None = None, drop_noops: bool = False) -> EpisodeDataset:
    """Open the episodes at `path`; every format gives the same interface.

    orientation: which way up the source stores its images (None: as its format has it); images come out upright.
    drop_noops: leave out frames whose action does nothing.
    Raises InputError that names what is missing or damaged.
    """
    return LiberoDataset(Path(path).expanduser(), orientation, drop_noops)
