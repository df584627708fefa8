"""Decoded frames on disk: every frame of a dataset as the policy is given it, memory-mapped by all readers."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlas.data.caches.arrays import map_array
from atlas.data.episode import EpisodeDataset
from atlas.data.image_fit import fit_images
from atlas.data.mixture import Source, sources_of
from atlas.errors import InputError, first_line
from atlas.system.files import atomic_path, sync, write_json
from atlas.system.locks import hold
from atlas.system.paths import check_folder
from atlas.system.process_control.pool import run_jobs

# A side of squares, as `fit_images` makes them; or the height and width of whole pictures, as they are.
Pixels = int | tuple[int, int]

_FORMAT = 1
_ABOUT = "about.json"  # what the frames come from; for people, since the folder's name is a hash
_SHARD_BYTES = 128 * 2**20
_AT_ONCE = 64  # frames decoded together
_WORTH_PROCESSES = 2000  # images


class FrameCache:
    """The frames of one dataset: a folder of `frames_00000.npy` and so on, uint8 [n, V, 3, height, width] each.

    The folder's name is derived from what the frames depend on, so other data uses another folder. A file is written
    completely or not at all, and an interrupted fill is continued.
    """

    def __init__(self, root: Path, source: Source, cameras: Sequence[str], size: Pixels):
        """root: the folder of all caches. cameras: by the mixture's names, in order."""
        self._height, self._width = (size, size) if isinstance(size, int) else size
        self._whole = not isinstance(size, int)
        self.cameras = [source.camera(camera) for camera in cameras]
        self.about: dict[str, Any] = {
            "format": _FORMAT,
            "dataset": str(source.dataset.path),
            "fingerprint": source.dataset.fingerprint(),
            "cameras": self.cameras,
            "image_size": list(size) if isinstance(size, tuple) else size,
            "frames": int(source.dataset.lengths.sum()),
            "frames_a_file": max(1, _SHARD_BYTES // (len(cameras) * 3 * self._height * self._width)),
        }
        content = {key: value for key, value in self.about.items() if key != "dataset"}
        self.folder = root / hashlib.sha256(repr(content).encode()).hexdigest()[:16]
        self.name = source.name
        self._mapped: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}

    @property
    def shards(self) -> int:
        return -(-self.about["frames"] // self.about["frames_a_file"])

    @property
    def missing(self) -> list[int]:
        """The numbers of the files that are not there yet."""
        return [shard for shard in range(self.shards) if not self._is_there(shard)]

    def _is_there(self, shard: int) -> bool:
        """Whether the file is there with its bytes: a power cut may leave only its name."""
        path = self.path(shard)
        return path.exists() and path.stat().st_size > 0

    def bytes(self, shards: Sequence[int]) -> int:
        """The disk space that these files take."""
        return sum(int(np.prod(self.shape(shard))) for shard in shards)

    def path(self, shard: int) -> Path:
        return self.folder / f"frames_{shard:05d}.npy"

    def span(self, shard: int) -> tuple[int, int]:
        """The first frame of a file, and the one after its last."""
        first = shard * self.about["frames_a_file"]
        return first, min(first + self.about["frames_a_file"], self.about["frames"])

    def shape(self, shard: int) -> tuple[int, ...]:
        first, end = self.span(shard)
        return end - first, len(self.cameras), 3, self._height, self._width

    def fit(self, images: np.ndarray) -> np.ndarray:
        """Upright pictures uint8 [n, H, W, 3] as the cache has them, [n, 3, height, width]."""
        return images.transpose(0, 3, 1, 2) if self._whole else fit_images(images, self._height).numpy()

    def frame(self, number: int) -> np.ndarray:
        """uint8 [V, 3, height, width]: a frame, counted over all episodes, still mapped into memory."""
        shard, row = divmod(number, self.about["frames_a_file"])
        return self._shard(shard)[row]

    def check(self) -> None:
        """Raises InputError if files are missing, or are not what they should be."""
        missing = self.missing
        if missing:
            raise InputError(
                f"data.frame_cache: {self.folder} lacks {len(missing)} of {self.shards} files of '{self.name}', which "
                "are made before training, on the machine that starts it; all machines must see the folder."
            )
        for shard in range(self.shards):
            self._shard(shard)

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._mapped:
            path = self.path(shard)
            try:
                mapped = map_array(path)
            except ValueError as error:
                raise InputError(
                    f"{path} is damaged ({first_line(error)}); delete it, and training makes it again."
                ) from None
            if mapped.shape != self.shape(shard) or mapped.dtype != np.uint8 or not mapped.flags.c_contiguous:
                raise InputError(
                    f"{path} is {mapped.dtype} of shape {mapped.shape}, expected uint8 of {self.shape(shard)}; delete "
                    "it, and training makes it again."
                )
            self._mapped[shard] = np.asarray(mapped)
        return self._mapped[shard]


def frame_caches(root: Path, dataset: EpisodeDataset, cameras: Sequence[str], size: Pixels) -> list[FrameCache]:
    """The caches of a dataset's sources, filled or not."""
    return [FrameCache(root, source, cameras, size) for source in sources_of(dataset)]


def fill_caches(root: Path, dataset: EpisodeDataset, cameras: Sequence[str], size: Pixels) -> None:
    """Decode every frame that is not in the caches yet, on all cores, and show the progress.

    First prints the disk space needed. Raises InputError if there is too little, or a frame cannot be read.
    """
    check_folder("data.frame_cache", root)
    caches = frame_caches(root, dataset, cameras, size)
    wanted = [(cache, source, cache.missing) for cache, source in zip(caches, sources_of(dataset), strict=True)]
    wanted = [(cache, source, missing) for cache, source, missing in wanted if missing]
    if not wanted:
        return
    needed = sum(cache.bytes(missing) for cache, _, missing in wanted)
    check_room(root, needed)
    names = ", ".join(f"'{cache.name}'" for cache, *_ in wanted)
    # On stderr like a progress bar: a run has no log yet.
    print(f"data.frame_cache: the decoded frames of {names} take {_size_of(needed)} in {root}.", file=sys.stderr)
    for cache, source, _ in wanted:
        with hold(cache.folder, f"the frame cache of '{cache.name}'", wait=True):
            _fill(cache, source)


def _fill(cache: FrameCache, source: Source) -> None:
    """Decode what is missing in one cache; no other process fills it meanwhile."""
    missing = cache.missing  # computed now, as another process may have filled it while this one waited
    if not missing:
        return
    write_json(cache.folder / _ABOUT, cache.about)
    # A few frames are decoded faster than processes start.
    few = sum(cache.shape(shard)[0] for shard in missing) * len(cache.cameras) < _WORTH_PROCESSES
    workers, start_with = 1 if few else None, (cache, source.dataset)
    run_jobs(f"decoding {cache.name}", cache.shards, missing, _write, _start, start_with, workers, may_stay=True)


def check_room(root: Path, needed: int) -> None:
    """Raises InputError if the folder's disk has less than `needed` bytes free."""
    there = next(parent for parent in (root, *root.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"data.frame_cache: the frames take {_size_of(needed)}, but {there} has {_size_of(free)} free. Choose "
            "another folder or a smaller data.image_size, or leave it out."
        )


def _size_of(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


_at_work: list[tuple[FrameCache, EpisodeDataset]] = []  # in a process that decodes: what it works on


def _start(cache: FrameCache, dataset: EpisodeDataset) -> None:
    _at_work[:] = [(cache, dataset)]


def _write(shard: int) -> None:
    """Decode the frames of one file. Raises InputError if one cannot be read, or there is no space."""
    cache, dataset = _at_work[0]
    first, end = cache.span(shard)
    starts = np.concatenate([[0], np.cumsum(dataset.lengths)])
    episodes = range(int(np.searchsorted(starts, first, side="right")) - 1, int(np.searchsorted(starts, end)))
    try:
        with atomic_path(cache.path(shard)) as partial:
            out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=cache.shape(shard))
            for number in episodes:
                begin, stop = max(first, int(starts[number])), min(end, int(starts[number + 1]))
                for some in range(begin, stop, _AT_ONCE):
                    frames = range(some, min(some + _AT_ONCE, stop))
                    _decode(dataset, number, cache, frames, int(starts[number]), out[some - first :])
            out.flush()
            del out
            sync(partial)
    except OSError as error:
        raise InputError(f"{cache.path(shard)} cannot be written ({error.strerror}).") from None


def _decode(
    dataset: EpisodeDataset, number: int, cache: FrameCache, frames: range, start: int, out: np.ndarray
) -> None:
    """Decode frames of an episode that begins at frame `start` into the first rows of out [n, V, 3, height, width]."""
    episode = dataset.episode(number)
    for view, camera in enumerate(cache.cameras):
        images = episode.images(camera, [frame - start for frame in frames])
        out[: len(frames), view] = cache.fit(images)
