"""The chunk dataset: an observation at t, the actions t … t+H-1, and which of them lie past the episode's end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import get_worker_info

from atlas.data.caches.feature_cache import FeatureCache
from atlas.data.caches.frame_cache import FrameCache
from atlas.data.episode import EpisodeDataset
from atlas.data.image_fit import ImageFit, ViewForm
from atlas.data.mixture import Source, sources_of
from atlas.data.sampling.randomness import Stream, sample_keys, uniform
from atlas.data.statistics import DatasetStatistics, kept_statistics
from atlas.errors import InputError
from atlas.types import Batch

Sample = tuple[int, int]  # epoch, index

_AT_ONCE = 16  # images held at a time in the dataset's own size, which may exceed the size trained on


class ChunkDataset:
    """Samples of the chosen episodes, one per frame; only the images of that frame are read.

    Asked for many samples at once, it returns a whole Batch (`__getitems__`, which torch's loader calls). Actions and
    proprio are the datasets' own arrays, mapped into memory if the format permits it.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        episodes: np.ndarray,
        cameras: Sequence[str],
        image_size: int,
        horizon: int,
        seed: int = 0,
        fit: ImageFit | None = None,
    ) -> None:
        """seed: for the samples' random numbers. fit: how the policy fits whole pictures; None: it is given squares of
        image_size. Raises InputError if no episode is as long as a chunk."""
        lengths = dataset.lengths[episodes]
        if len(episodes) and horizon > lengths.max():
            raise InputError(
                f"data.action_horizon is {horizon}, but the longest of the {len(episodes)} episodes of {dataset.path} "
                f"has {lengths.max()} frames; a chunk must fit into an episode."
            )
        self.sources = sources_of(dataset)
        self._dataset = dataset
        self._cameras = list(cameras)
        sizes = [source.dataset.image_size(source.camera(camera)) for source in self.sources for camera in cameras]
        self._form = ViewForm.of(image_size, fit, sizes)
        self._pixels, self._seed = self._form.room(sizes), seed
        self.horizon = horizon
        self.episodes = episodes
        self._place = np.repeat(np.arange(len(episodes), dtype=np.int32), lengths)  # each frame's index in `episodes`
        starts = np.cumsum(lengths) - lengths
        self._frame = (np.arange(lengths.sum()) - np.repeat(starts, lengths)).astype(np.int32)
        first = np.cumsum(dataset.lengths) - dataset.lengths
        self._frame_in_dataset = first[episodes][self._place] + self._frame
        firsts = [source.first for source in self.sources]
        self._source_of_episode = np.searchsorted(firsts, episodes, side="right") - 1
        self._first_frame = first[firsts]  # of each source
        self._row = np.concatenate(
            [np.empty(0, np.int64), *(self._rows_of(i) for i in range(len(episodes)))]
        )  # in its source's numbers
        self._features: FeatureCache | None = None
        self._augmented = False
        self._decoded: tuple[FrameCache, ...] | None = None
        # How many actions of each frame's chunk lie within the episode.
        self.valid_steps = np.minimum(horizon, np.repeat(lengths, lengths) - self._frame)

    def __len__(self) -> int:
        return len(self._frame)

    def __getitem__(self, sample: Sample) -> Batch:
        return self.__getitems__([sample])

    def __getitems__(self, samples: Sequence[Sample]) -> Batch:
        index = np.array([i for _, i in samples], np.int64)
        steps = np.arange(self.horizon)
        is_pad = steps >= self.valid_steps[index][:, None]  # [B, H]
        chunk = index[:, None] + np.where(is_pad, self.valid_steps[index][:, None] - 1, steps)  # repeats the last one
        key = sample_keys(self._seed, torch.tensor([e for e, _ in samples]), torch.from_numpy(index))
        cached = self._features is not None
        source = self._source_of_episode[self._place[index]]
        proprio = np.empty((len(index), self._dataset.proprio_dim), np.float32)
        actions = np.empty((*chunk.shape, self._dataset.action_spec.dim), np.float32)
        for number in np.unique(source).tolist():
            here = source == number
            actions[here] = self.sources[number].actions(self._row[chunk[here]])
            proprio[here] = self.sources[number].dataset.numbers().proprio[self._row[index[here]]]
        return Batch(
            images=None if cached else self._images(index, source),
            proprio=torch.from_numpy(proprio),
            instruction=[self.instruction(int(i)) for i in index],
            source=torch.from_numpy(source),
            actions=torch.from_numpy(actions),
            action_is_pad=torch.from_numpy(is_pad),
            key=key,
            features=self._cached_features(index, key) if cached else None,
        )

    def use_features(self, cache: FeatureCache, augmented: bool) -> None:
        """Return a frozen encoder's features from now on instead of images. augmented: any version of a frame, chosen
        by the sample's key; otherwise only the plain one."""
        assert cache.layout.frames == self._dataset.lengths.sum()
        self._features, self._augmented = cache, augmented

    def use_frames(self, caches: Sequence[FrameCache]) -> None:
        """Read images from caches of decoded frames from now on, one cache per source."""
        assert len(caches) == len(self.sources)
        self._decoded = tuple(caches)

    def statistics(self) -> tuple[DatasetStatistics, ...]:
        """Exact statistics of these episodes' frames, for each source."""
        return tuple(self._statistics_of(number) for number in range(len(self.sources)))

    @property
    def source_of(self) -> np.ndarray:
        """int64 [samples]: the source of each sample."""
        return self._source_of_episode[self._place]

    @property
    def task_of(self) -> np.ndarray:
        """int64 [samples]: the index in `tasks` of each sample."""
        return self._dataset.task_of[self.episodes][self._place]

    @property
    def tasks(self) -> list[str]:
        """The instructions of the whole dataset."""
        return self._dataset.tasks

    def instruction(self, index: int) -> str:
        """The instruction of a sample."""
        return self._dataset.tasks[self._dataset.task_of[self.episodes[self._place[index]]]]

    def place(self, index: int) -> tuple[int, int]:
        """The place of a sample in the dataset: (episode, frame)."""
        return int(self.episodes[self._place[index]]), int(self._frame[index])

    def camera_images(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """The images of some samples in the dataset's own size, upright: {camera: uint8 [n, H, W, 3]}."""
        index = np.array([i for _, i in samples], np.int64)
        source = self.sources[int(self._source_of_episode[self._place[index[0]]])]
        episodes, frames = self.episodes[self._place[index]] - source.first, self._frame[index].astype(np.int64)
        return {camera: source.dataset.images(source.camera(camera), episodes, frames) for camera in self._cameras}

    def instructions(self) -> list[str]:
        """The distinct instructions of these episodes."""
        return [self._dataset.tasks[task] for task in sorted(set(self._dataset.task_of[self.episodes].tolist()))]

    def _rows_of(self, place: int) -> np.ndarray:
        """int64 [frames]: the rows of one of `episodes` among its source's numbers."""
        source = self.sources[self._source_of_episode[place]]
        rows = source.dataset.rows(int(self.episodes[place]) - source.first)
        return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows

    def _statistics_of(self, number: int) -> DatasetStatistics:
        source = self.sources[number]
        rows = self._row[self.source_of == number]
        title = f"statistics of {source.name}"
        return DatasetStatistics(
            source=source.name,
            frames=len(rows),
            episodes=int((self._source_of_episode == number).sum()),
            action=kept_statistics(source.actions(rows), title),
            proprio=kept_statistics(source.dataset.numbers().proprio[rows], title),
            environment=source.dataset.environment,
        )

    def _images(self, index: np.ndarray, source: np.ndarray) -> torch.Tensor:
        """[B, V, 3, H, W], in the form of `ViewForm`, of samples int64 [B], which come from sources int64 [B]."""
        height, width = self._form.height, self._form.width
        if self._decoded is None:
            # In memory the channels of a pixel are contiguous, as decoders deliver them: reordering them costs a worker
            # more than everything else after decoding, and a GPU nothing.
            pixels = _room((len(index), len(self._cameras), height, width, 3), self._pixels)
            for number in np.unique(source).tolist():
                here = np.flatnonzero(source == number)
                here = here[np.argsort(index[here])]  # in the files' order
                for first in range(0, len(here), _AT_ONCE):
                    some = here[first : first + _AT_ONCE]
                    self._decode(self.sources[number], index[some], some.tolist(), pixels.numpy())
            return pixels.permute(0, 1, 4, 2, 3)
        images = _room((len(index), len(self._cameras), 3, height, width))
        frames = self._frame_in_dataset[index] - self._first_frame[source]
        for views, number, frame in zip(images.numpy(), source.tolist(), frames.tolist(), strict=True):
            views[:] = self._decoded[number].frame(frame)
        return images

    def _decode(self, source: Source, index: np.ndarray, places: Sequence[int], out: np.ndarray) -> None:
        """Read the images of a source's samples int64 [n] into the given places of [B, V, H, W, 3]."""
        episodes, frames = self.episodes[self._place[index]] - source.first, self._frame[index].astype(np.int64)
        for view, camera in enumerate(self._cameras):
            images = source.dataset.images(source.camera(camera), episodes, frames)
            fitted = self._form(images, self._pixels).permute(0, 2, 3, 1).numpy()
            for place, image in zip(places, fitted, strict=True):
                out[place, view] = image

    def _cached_features(self, index: np.ndarray, key: torch.Tensor) -> torch.Tensor:
        """bfloat16 [B, tokens, dim]."""
        assert self._features is not None
        versions = np.zeros(len(index), np.int64)
        if self._augmented:
            versions = (uniform(key, Stream.CACHED_VERSION, 1)[:, 0] * self._features.layout.versions).long().numpy()
        return self._features.features(self._frame_in_dataset[index], versions)


def _room(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """A tensor of this shape; in a data worker in shared memory, so that the batch is not copied again."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # as torch's own collation does
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
