"""The chunk dataset: an observation at t, the actions t … t+H-1, and which of them lie past the episode's end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from atlas.data.episode import EpisodeDataset
from atlas.data.feature_cache import FeatureCache
from atlas.data.geometry import fit_images
from atlas.data.randomness import Stream, sample_keys, uniform
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.errors import InputError
from atlas.types import Batch

Sample = tuple[int, int]  # epoch, index


class ChunkDataset:
    """Samples of the chosen episodes, one a frame; reads the images of that frame only.

    Asked for many samples at once it gives a whole Batch (`__getitems__`, which torch's loader calls). The numeric
    columns are held in memory, since the chunk needs neighbours and the statistics need all.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        episodes: np.ndarray,
        cameras: Sequence[str],
        image_size: int,
        horizon: int,
        source: int = 0,
        seed: int = 0,
    ) -> None:
        """seed: of the samples' random numbers. Raises InputError where no episode is as long as a chunk."""
        lengths = dataset.lengths[episodes]
        if horizon > lengths.max(initial=0):
            raise InputError(
                f"data.action_horizon is {horizon}, and the longest of the {len(episodes)} episodes of {dataset.path} "
                f"has {lengths.max(initial=0)} frames; a chunk must fit into an episode."
            )
        self._dataset = dataset
        self._cameras = list(cameras)
        self._image_size = image_size
        self._source, self._seed = source, seed
        self.horizon = horizon
        self.episodes = episodes
        read = [dataset.episode(int(e)) for e in episodes]
        self._actions = np.concatenate([e.actions for e in read])  # [frames, A]
        self._proprio = np.concatenate([e.proprio for e in read])  # [frames, P]
        self._place = np.repeat(np.arange(len(episodes)), lengths)  # which of `episodes` a frame is of
        self._frame = np.concatenate([np.arange(n) for n in lengths])
        first = np.cumsum(dataset.lengths) - dataset.lengths
        self._frame_in_dataset = first[episodes][self._place] + self._frame
        self._features: FeatureCache | None = None
        self._augmented = False
        # How many actions of a frame's chunk lie within the episode.
        self.valid_steps = np.minimum(horizon, np.repeat(lengths, lengths) - self._frame)

    def __len__(self) -> int:
        return len(self._frame)

    def __getitem__(self, sample: Sample) -> Batch:
        return self.__getitems__([sample])

    def __getitems__(self, samples: Sequence[Sample]) -> Batch:
        index = np.array([i for _, i in samples], np.int64)
        steps = np.arange(self.horizon)
        is_pad = steps >= self.valid_steps[index][:, None]  # [B, H]
        rows = index[:, None] + np.where(is_pad, self.valid_steps[index][:, None] - 1, steps)  # repeats the last one
        key = sample_keys(self._seed, torch.tensor([e for e, _ in samples]), torch.from_numpy(index))
        cached = self._features is not None
        return Batch(
            images=None if cached else torch.stack([self._images(int(i)) for i in index]),
            proprio=torch.from_numpy(self._proprio[index]),
            instruction=[self.instruction(int(i)) for i in index],
            source=torch.full((len(index),), self._source),
            actions=torch.from_numpy(self._actions[rows]),
            action_is_pad=torch.from_numpy(is_pad),
            key=key,
            features=self._cached_features(index, key) if cached else None,
        )

    def use_features(self, cache: FeatureCache, augmented: bool) -> None:
        """Give a frozen encoder's features from now on, and no images. augmented: any version of a frame, as the
        sample's key decides, and not only the plain one."""
        assert cache.layout.frames == self._dataset.lengths.sum()
        self._features, self._augmented = cache, augmented

    def statistics(self) -> DatasetStatistics:
        """Exact statistics of these episodes' frames."""
        return DatasetStatistics(
            source=str(self._dataset.path.name),
            frames=len(self),
            episodes=len(self.episodes),
            action=ColumnStatistics.of(self._actions),
            proprio=ColumnStatistics.of(self._proprio),
        )

    def instruction(self, index: int) -> str:
        """The instruction of a sample."""
        return self._dataset.tasks[self._dataset.task_of[self.episodes[self._place[index]]]]

    def place(self, index: int) -> tuple[int, int]:
        """Where a sample is in the dataset: (episode, frame)."""
        return int(self.episodes[self._place[index]]), int(self._frame[index])

    def instructions(self) -> list[str]:
        """The distinct instructions of these episodes."""
        return [self._dataset.tasks[task] for task in sorted(set(self._dataset.task_of[self.episodes].tolist()))]

    def _images(self, index: int) -> torch.Tensor:
        """uint8 [V, 3, size, size]."""
        episode = self._dataset.episode(int(self.episodes[self._place[index]]))
        frame = [int(self._frame[index])]
        return torch.cat([fit_images(episode.images(camera, frame), self._image_size) for camera in self._cameras])

    def _cached_features(self, index: np.ndarray, key: torch.Tensor) -> torch.Tensor:
        """bfloat16 [B, tokens, dim]."""
        assert self._features is not None
        versions = np.zeros(len(index), np.int64)
        if self._augmented:
            versions = (uniform(key, Stream.CACHED_VERSION, 1)[:, 0] * self._features.layout.versions).long().numpy()
        return self._features.features(self._frame_in_dataset[index], versions)
