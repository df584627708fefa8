"""The data that a config trains on: the episodes for training and for validation, and what an epoch draws from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atlas.config import Config
from atlas.data.caches.frame_cache import frame_caches
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_configured
from atlas.data.sampling.balance import balanced_draws
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.sampling.history import History
from atlas.data.sampling.kept_split import KeptSplit
from atlas.data.sampling.order import Draws
from atlas.data.sampling.split import split_dataset
from atlas.errors import InputError


@dataclass(frozen=True)
class TrainingData:
    """The data of a run; the same on all ranks."""

    dataset: EpisodeDataset
    cameras: list[str]
    train: ChunkDataset
    val: ChunkDataset
    draws: Draws  # of the training samples

    def kept_split(self) -> KeptSplit:
        """The part of the split that a checkpoint keeps."""
        return KeptSplit.of(self.dataset, self.train.episodes, self.val.episodes)


def open_training_data(config: Config, kept: KeptSplit | None = None, begun: Path | None = None) -> TrainingData:
    """Open and split the data of a prepared config. kept: the split of a resumed run. begun: the folder of the saved
    policy that training begins or goes on with. Raises InputError."""
    data = split_data(config, *open_configured(config.data), kept, begun)
    read_cached_frames(config, data)
    return data


def read_cached_frames(config: Config, data: TrainingData) -> None:
    """Read images from `data.frame_cache` if it is set and filled. Raises InputError if it is of other data."""
    if config.data.frame_cache is None:
        return
    caches = frame_caches(Path(config.data.frame_cache), data.dataset, data.cameras, data.train.pixels_to_cache)
    for cache in caches:
        cache.check()
    data.train.use_frames(caches)
    data.val.use_frames(caches)


def split_data(
    config: Config,
    dataset: EpisodeDataset,
    cameras: list[str],
    kept: KeptSplit | None = None,
    begun: Path | None = None,
) -> TrainingData:
    """Split an open dataset, and balance it. kept, begun: see `open_training_data`. Raises InputError if a chunk is too
    long, or a share too small."""
    if config.model.reads_images and not cameras:
        raise InputError(
            "The dataset has no cameras: what there is to see is in its proprio. Set model.vision.name=none, and "
            "model.fusion.name=mlp beside it."
        )
    cameras = cameras if config.model.reads_images else []
    size, horizon, fit = config.data.image_size, config.data.action_horizon, config.model.image_fit(begun)
    history = History(**config.data.history.model_dump())
    train, val = (
        ChunkDataset(
            dataset, episodes, cameras, size, horizon, config.seed, fit, history, config.data.chunks_cross_tasks
        )
        for episodes in split_dataset(dataset, config.data.val_fraction, config.seed, kept)
    )
    return TrainingData(dataset, cameras, train, val, balanced_draws(train, config.data))
