"""The chunk dataset: an observation at t, the actions t … t+H-1, and which of them lie past the episode's end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import get_worker_info

from atlas.data.caches.feature_cache import FeatureCache
from atlas.data.caches.frame_cache import FrameCache, Pixels
from atlas.data.episode import EpisodeDataset, frame_tasks
from atlas.data.image_fit import ImageFit, ViewForm
from atlas.data.mixture import Source, sources_of
from atlas.data.sampling.history import ONE_FRAME, History
from atlas.data.sampling.randomness import Stream, sample_keys, uniform
from atlas.data.sampling.relative_actions import RelativeActions
from atlas.data.statistics import ColumnStatistics, DatasetStatistics, kept_statistics
from atlas.errors import InputError
from atlas.types import Batch

Sample = tuple[int, int]  # epoch, index

_MOST_RELATIVE = 2_000_000  # steps of chunks whose statistics are computed
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
        history: History = ONE_FRAME,
        cross_tasks: bool = False,
    ) -> None:
        """seed: for the samples' random numbers. fit: how the policy fits whole pictures; None: it is given squares of
        image_size. history: the frames that a sample shows. cross_tasks: whether a chunk goes on
        where the instruction changes within an episode. Raises InputError if no episode is as long as a chunk."""
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
        self.horizon, self.history = horizon, history
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
        self._task = np.repeat(dataset.task_of[episodes], lengths)
        for place, episode in enumerate(episodes.tolist()):
            tasks = frame_tasks(dataset, episode)
            if tasks is not None:
                rows = slice(starts[place], starts[place] + lengths[place])
                self._task[rows] = tasks
                if not cross_tasks:
                    self.valid_steps[rows] = np.minimum(self.valid_steps[rows], _until_change(tasks))

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
        seen = self._seen(index)  # [B, frames]
        proprio = np.empty((*seen.shape, self._dataset.proprio_dim), np.float32)
        actions = np.empty((*chunk.shape, self._dataset.action_spec.dim), np.float32)
        for number in np.unique(source).tolist():
            here = source == number
            actions[here] = self.sources[number].actions(self._row[chunk[here]])
            proprio[here] = self.sources[number].dataset.numbers().proprio[self._row[seen[here]]]
        return Batch(
            images=None if cached or not self._cameras else self._views(seen, source),
            proprio=torch.from_numpy(proprio.reshape(len(index), -1)),
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

    @property
    def pixels_to_cache(self) -> Pixels:
        """The pixels of the frames that `use_frames` reads. Raises InputError for pictures that are resized in float32,
        which a cache of bytes does not hold."""
        if self._pixels != torch.uint8:
            raise InputError(
                "data.frame_cache holds pictures as they are, and these cameras have several sizes, which the policy "
                "has resized to its own in float32: choose cameras of one size by data.cameras, or leave "
                "data.frame_cache out."
            )
        return self._form.height if self._form.fit is None else (self._form.height, self._form.width)

    def use_frames(self, caches: Sequence[FrameCache]) -> None:
        """Read images from caches of decoded frames from now on, one cache per source."""
        assert len(caches) == len(self.sources)
        self._decoded = tuple(caches)

    def statistics(self, relative: RelativeActions | None = None) -> tuple[DatasetStatistics, ...]:
        """Exact statistics of these episodes' frames, for each source. relative: what is learned relative to the state;
        its statistics are over all steps of chunks, evenly chosen if there are very many."""
        found = [self._statistics_of(number) for number in range(len(self.sources))]
        if relative is not None:
            found = [replace(s, relative_action=self._relative_of(i, relative)) for i, s in enumerate(found)]
        return tuple(found)

    @property
    def source_of(self) -> np.ndarray:
        """int64 [samples]: the source of each sample."""
        return self._source_of_episode[self._place]

    @property
    def task_of(self) -> np.ndarray:
        """int64 [samples]: the index in `tasks` of each sample."""
        return self._task

    @property
    def tasks(self) -> list[str]:
        """The instructions of the whole dataset."""
        return self._dataset.tasks

    def instruction(self, index: int) -> str:
        """The instruction of a sample."""
        return self._dataset.tasks[self._task[index]]

    def place(self, index: int) -> tuple[int, int]:
        """The place of a sample in the dataset: (episode, frame)."""
        return int(self.episodes[self._place[index]]), int(self._frame[index])

    def camera_images(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """The images of some samples in the dataset's own size, upright: {camera: uint8 [n, H, W, 3]}, with a history
        [n, frames, H, W, 3]."""
        index = np.array([i for _, i in samples], np.int64)
        source = self.sources[int(self._source_of_episode[self._place[index[0]]])]
        seen = self._seen(index)
        flat = seen.reshape(-1)
        episodes, frames = self.episodes[self._place[flat]] - source.first, self._frame[flat].astype(np.int64)
        found = {camera: source.dataset.images(source.camera(camera), episodes, frames) for camera in self._cameras}
        if self.history.steps == 1:
            return found
        return {camera: images.reshape(*seen.shape, *images.shape[1:]) for camera, images in found.items()}

    def instructions(self) -> list[str]:
        """The distinct instructions of these episodes."""
        return [self._dataset.tasks[task] for task in np.unique(self._task).tolist()]

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

    def _seen(self, index: np.ndarray) -> np.ndarray:
        """The samples int64 [n, frames] whose frames are seen at samples int64 [n], the earliest first."""
        ago = np.minimum(self.history.ago, self._frame[index][:, None])
        return np.asarray(index[:, None] - ago, np.int64)

    def _relative_of(self, number: int, relative: RelativeActions) -> ColumnStatistics:
        """Make a source's chunks relative to the state at their start."""
        own = np.flatnonzero(self.source_of == number)
        own = own[:: max(1, len(own) * self.horizon // _MOST_RELATIVE)]
        source, steps = self.sources[number], np.arange(self.horizon)
        valid = steps < self.valid_steps[own][:, None]
        chunks = source.actions(self._row[np.where(valid, own[:, None] + steps, own[:, None])])
        state = source.dataset.numbers().proprio[self._row[own]]
        changed = relative.relative(torch.from_numpy(np.asarray(chunks)), torch.from_numpy(np.array(state)))
        return kept_statistics(changed.numpy()[valid], f"relative actions of {source.name}")

    def _views(self, seen: np.ndarray, source: np.ndarray) -> torch.Tensor:
        """[B, V, 3, H, W] of samples int64 [B, frames], which come from sources int64 [B]."""
        count, frames = seen.shape
        images = self._images(seen.reshape(-1), np.repeat(source, frames))
        return images if frames == 1 else images.reshape(count, -1, *images.shape[2:])

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


def _until_change(tasks: np.ndarray) -> np.ndarray:
    """int64 [T]: how many frames from each one on have the same task."""
    ends = np.append(np.flatnonzero(np.diff(tasks)) + 1, len(tasks))
    return np.asarray(ends[np.searchsorted(ends, np.arange(len(tasks)), side="right")] - np.arange(len(tasks)))


def _room(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """A tensor of this shape; in a data worker in shared memory, so that the batch is not copied again."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # as torch's own collation does
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
