"""Opens a dataset of any known format. Other packages add a `DatasetFormat` in the group `atlas.datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from atlas.config import DataConfig, SourceConfig
from atlas.config.data_sections import FeaturesConfig
from atlas.data.episode import EpisodeDataset
from atlas.data.hdf5.reader import LiberoDataset
from atlas.data.lerobot.dataset import LeRobotDataset, is_lerobot
from atlas.data.lerobot.hub_downloads import PREFIX, fetch_dataset, parse_reference
from atlas.data.mixture import Mixture, common_cameras
from atlas.data.orientation import Orientation
from atlas.data.video import chosen_decoder
from atlas.errors import InputError
from atlas.system.plugins import PluginTable


class DatasetFormat(Protocol):
    """A format from another package. Its datasets are read through `open`, and Atlas itself does not look into them."""

    def recognises(self, path: str) -> bool:
        """Whether a `path` from the config, which is not a LeRobot dataset, has this format."""

    def open(self, source: SourceConfig, cameras: Sequence[str] | None, skip_damaged: bool) -> EpisodeDataset:
        """The episodes at `source.path`, read as the source says; images come out upright.

        cameras: those that will be used (None: all). skip_damaged: leave out what is damaged, with a warning, instead
        of refusing it. Raises InputError, also for a setting of the source that does not apply to this format.
        """


FORMATS: PluginTable[DatasetFormat] = PluginTable("atlas.datasets", {})


def open_configured(config: DataConfig) -> tuple[EpisodeDataset, list[str]]:
    """The dataset that a config names, or the mixture of several, and the cameras that are used, in order.

    Raises InputError as `open_dataset` and `Mixture` do, if the config names a camera that the dataset does not have,
    or if a file is truncated.
    """
    if config.datasets is None:
        dataset = _open_source(config.sources[0], config, config.cameras)
        unknown = [camera for camera in config.cameras or [] if camera not in dataset.cameras]
        if unknown:
            raise InputError(f"data.cameras names {unknown}, but {dataset.path} has the cameras {dataset.cameras}.")
        return dataset, config.cameras or dataset.cameras
    datasets = []
    for number, source in enumerate(config.datasets):
        try:
            datasets.append(_open_source(source, config, _used(source, config.cameras)))
        except InputError as error:
            raise InputError(f"data.datasets.{number} ('{source.label}'): {error}") from error
    cameras = common_cameras(config.datasets, datasets, config.cameras)
    return Mixture(config.datasets, datasets, cameras), cameras


def _used(source: SourceConfig, cameras: Sequence[str] | None) -> list[str] | None:
    """The source's cameras that are used, by its own names; None for all. Missing ones are reported later."""
    wanted = source.cameras if source.cameras is not None else cameras
    if isinstance(wanted, dict):
        return [own for name, own in wanted.items() if cameras is None or name in cameras] or None
    return None if wanted is None else [name for name in wanted if cameras is None or name in cameras] or None


def _open_source(source: SourceConfig, config: DataConfig, cameras: Sequence[str] | None) -> EpisodeDataset:
    orientation = None if source.orientation == "auto" else source.orientation
    dataset = open_dataset(
        source.path,
        orientation,
        source.drop_noops,
        source.features,
        cameras,
        source.instruction,
        config.skip_damaged,
    )
    if isinstance(dataset, LeRobotDataset):
        dataset.check_files()
        if dataset.has_videos:
            chosen_decoder()  # logged here once, rather than by each data worker
    return dataset


def open_dataset(
    path: str | Path,
    orientation: Orientation | None = None,
    drop_noops: bool = False,
    features: FeaturesConfig | None = None,
    cameras: Sequence[str] | None = None,
    instruction: str | None = None,
    skip_damaged: bool = False,
) -> EpisodeDataset:
    """Open the episodes at `path`; every format has the same interface.

    path: a LIBERO or robomimic HDF5 file or a folder of them, a LeRobot folder, `hf:owner/name[@revision]` for a
    LeRobot dataset on the Hugging Face hub, or whatever another package's format recognises.
    orientation: which way up the source stores its images (None: as usual for its format); images come out upright.
    drop_noops: leave out frames whose action does nothing.
    features: which features of a LeRobot dataset mean what (None: decided by their names).
    cameras: those that will be used (None: all); a LeRobot dataset's files for other cameras may be absent.
    instruction: of episodes that have none.
    skip_damaged: leave out files and episodes that are damaged, each with a warning.
    Raises InputError that names what is missing or damaged.
    """
    if str(path).startswith(PREFIX):
        folder = fetch_dataset(parse_reference(str(path)), features, cameras)
        return LeRobotDataset(folder, orientation, drop_noops, features, cameras, skip_damaged, instruction)
    folder = Path(path).expanduser()
    other = None if is_lerobot(folder) else _other_format(str(path))
    if other is not None:
        source = SourceConfig(
            path=str(path),
            orientation=orientation or "auto",
            features=features,
            instruction=instruction,
            drop_noops=drop_noops,
        )
        return other.open(source, cameras, skip_damaged)
    if not folder.exists():
        raise InputError(
            f"There is no dataset at {folder}. Give a LIBERO HDF5 file or a folder of them, a LeRobot folder, or "
            "hf:owner/name for a dataset on the Hugging Face hub, as data.path."
        )
    if is_lerobot(folder):
        return LeRobotDataset(folder, orientation, drop_noops, features, cameras, skip_damaged, instruction)
    if features is not None:
        raise InputError(f"data.features is for LeRobot datasets, but {folder} is not one: it has no meta/info.json.")
    return LiberoDataset(folder, orientation, drop_noops, instruction, skip_damaged)


def _other_format(path: str) -> DatasetFormat | None:
    """The format from another package that recognises a path."""
    found = [FORMATS.find(name) for name in FORMATS.names()]
    return next((each for each in found if each is not None and each.recognises(path)), None)
