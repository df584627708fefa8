"""Opens a dataset of any known format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlas.config import DataConfig
from atlas.config.data import FeaturesConfig
from atlas.data.episode import EpisodeDataset
from atlas.data.lerobot import LeRobotDataset, is_lerobot
from atlas.data.lerobot.hub import PREFIX, fetch_dataset, parse_reference
from atlas.data.libero import LiberoDataset
from atlas.data.orientation import Orientation
from atlas.data.video import chosen_decoder
from atlas.errors import InputError


def open_configured(config: DataConfig) -> tuple[EpisodeDataset, list[str]]:
    """The dataset that a config names, and which of its cameras are used, in order.

    Raises InputError as `open_dataset`, and where the config names a camera that the dataset does not have, or a file
    of it is truncated.
    """
    orientation = None if config.orientation == "auto" else config.orientation
    dataset = open_dataset(config.path, orientation, config.drop_noops, config.features, config.cameras)
    unknown = [camera for camera in config.cameras or [] if camera not in dataset.cameras]
    if unknown:
        raise InputError(f"data.cameras names {unknown}, and {dataset.path} has the cameras {dataset.cameras}.")
    if isinstance(dataset, LeRobotDataset):
        dataset.check_files()
        if dataset.has_videos:
            chosen_decoder()  # said here once, and not by each data worker
    return dataset, config.cameras or dataset.cameras


def open_dataset(
    path: str | Path,
    orientation: Orientation | None = None,
    drop_noops: bool = False,
    features: FeaturesConfig | None = None,
    cameras: Sequence[str] | None = None,
) -> EpisodeDataset:
    """Open the episodes at `path`; every format gives the same interface.

    path: a LIBERO HDF5 file or a folder of them, a LeRobot folder, or `hf:owner/name[@revision]`, a LeRobot dataset of
    the Hugging Face hub.
    orientation: which way up the source stores its images (None: as its format has it); images come out upright.
    drop_noops: leave out frames whose action does nothing.
    features: which of a LeRobot dataset's features are what (None: as its names say).
    cameras: those that will be used (None: all); of a LeRobot dataset, the files of others need not be there.
    Raises InputError that names what is missing or damaged.
    """
    if str(path).startswith(PREFIX):
        folder = fetch_dataset(parse_reference(str(path)), features, cameras)
        return LeRobotDataset(folder, orientation, drop_noops, features, cameras)
    folder = Path(path).expanduser()
    if not folder.exists():
        raise InputError(
            f"There is no dataset at {folder}. Give a LIBERO HDF5 file or a folder of them, a LeRobot folder, or "
            "hf:owner/name for one of the Hugging Face hub, as data.path."
        )
    if is_lerobot(folder):
        return LeRobotDataset(folder, orientation, drop_noops, features, cameras)
    if features is not None:
        raise InputError(f"data.features is for LeRobot datasets, and {folder} is none: it has no meta/info.json.")
    return LiberoDataset(folder, orientation, drop_noops)
