"""A frozen encoder's outputs on disk: one row of tokens for every frame of a dataset, read instead of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas.data.caches.arrays import map_array
from atlas.errors import InputError, first_line
from atlas.system.documents import read_json
from atlas.system.files import atomic_path, write_json

INDEX = "cache.json"
_SHARD_BYTES = 128 * 2**20
_FORMAT = 1


@dataclass(frozen=True)
class CacheLayout:
    """The shape of a cache. Frames are counted over all episodes of the dataset, one after the other."""

    frames: int
    versions: int  # per frame: the image as it is, then augmented ones
    tokens: int
    dim: int

    def __post_init__(self) -> None:
        """Raises ValueError if a field is not an integer from 1 up."""
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a number from 1 up")

    @property
    def bytes(self) -> int:
        return self.frames * self._frame_bytes

    @property
    def frames_a_shard(self) -> int:
        return max(1, _SHARD_BYTES // self._frame_bytes)

    @property
    def shards(self) -> int:
        return -(-self.frames // self.frames_a_shard)

    @property
    def _frame_bytes(self) -> int:
        return 2 * self.versions * self.tokens * self.dim  # bfloat16

    def frames_of(self, shard: int) -> range:
        """The frames that a shard holds."""
        first = shard * self.frames_a_shard
        return range(first, min(self.frames, first + self.frames_a_shard))


class FeatureCache:
    """A folder with `cache.json`, which says what was computed from what, and `shard_00000.npy` and so on.

    A shard is [frames, versions, tokens, dim] in the bits of bfloat16 (numpy has no such type, so uint16). It is mapped
    into memory when it is first read, and is never half written.
    """

    def __init__(self, folder: Path, layout: CacheLayout, source: Mapping[str, Any]) -> None:
        """source: what the features depend on, as plain values; a cache for any other source is refused."""
        self.folder, self.layout, self.source = folder, layout, dict(source)

    @classmethod
    def create(cls, folder: Path, layout: CacheLayout, source: Mapping[str, Any]) -> FeatureCache:
        """Begin a cache, or continue one for the same source. Raises InputError if another one is there."""
        if (folder / INDEX).exists():
            there = cls.read(folder)
            there.check(source)
            if there.layout != layout:
                raise InputError(
                    f"{folder} holds {there.layout.versions} versions of each frame; {layout.versions} are asked for. "
                    "Choose another folder, or delete that one."
                )
            for path in map(there.shard_path, range(layout.shards)):
                if path.is_file() and not path.stat().st_size:  # a power cut left the name without the bytes
                    path.unlink()
            return there
        write_json(folder / INDEX, {"format": _FORMAT, "layout": asdict(layout), "source": dict(source)})
        return cls(folder, layout, source)

    @classmethod
    def read(cls, folder: Path) -> FeatureCache:
        """Open a cache, complete or not. Raises InputError if there is none or its index is damaged."""
        index = folder / INDEX
        try:
            values = read_json(index)
            if values["format"] != _FORMAT:
                raise InputError(
                    f"{index} has format {values['format']}, but this version reads {_FORMAT}; make the cache again."
                )
            return cls(folder, CacheLayout(**values["layout"]), values["source"])
        except OSError:
            raise InputError(
                f"data.feature_cache: {folder} holds no {INDEX}; make a cache with `atlas data cache-features`."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{index} is damaged ({error!r}); delete the folder and make the cache again.") from None

    def check(self, source: Mapping[str, Any]) -> None:
        """Raises InputError that names what differs if the features were not computed from `source`."""
        differing = [
            f"{name} was {self.source.get(name)!r} and is {source.get(name)!r}"
            for name in sorted({*self.source, *source})
            if self.source.get(name) != source.get(name)
        ]
        if differing:
            raise InputError(
                f"The feature cache {self.folder} was made from something else: {'; '.join(differing)}. Make one for "
                "this with `atlas data cache-features --out ANOTHER`, or set the config as it was."
            )

    def check_complete(self) -> None:
        """Raises InputError if shards are missing or have the wrong size."""
        there = {path.name for path in self.folder.glob("shard_*.npy")}  # the index may claim any number
        lacking = self.layout.shards - len(there)
        if lacking > 0 or not all(self.shard_path(i).name in there for i in range(self.layout.shards)):
            raise InputError(
                f"The feature cache {self.folder} lacks {max(lacking, 1)} of {self.layout.shards} shards; "
                "run `atlas data cache-features` again, which continues where it stopped."
            )
        for shard in range(self.layout.shards):
            self._open(shard)

    def has(self, shard: int) -> bool:
        return self.shard_path(shard).exists()

    def shard_path(self, shard: int) -> Path:
        return self.folder / f"shard_{shard:05d}.npy"

    def write(self, shard: int, features: torch.Tensor) -> None:
        """Write a whole shard, bfloat16 [frames, versions, tokens, dim]."""
        assert features.dtype == torch.bfloat16 and features.shape == self._shape(shard)
        with atomic_path(self.shard_path(shard)) as partial, partial.open("wb") as file:
            np.save(file, features.contiguous().view(torch.uint16).numpy())

    def features(self, frames: np.ndarray, versions: np.ndarray) -> torch.Tensor:
        """bfloat16 [n, tokens, dim] for frames and versions int64 [n]; nothing else is read."""
        shards, rows = np.divmod(frames, self.layout.frames_a_shard)
        places = zip(shards.tolist(), rows.tolist(), versions.tolist(), strict=True)
        read = np.stack([self._shard(shard)[row, version] for shard, row, version in places])
        return torch.from_numpy(read).view(torch.bfloat16)

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._mapped:
            self._mapped[shard] = self._open(shard)
        return self._mapped[shard]

    @cached_property
    def _mapped(self) -> dict[int, np.ndarray]:
        return {}

    def _open(self, shard: int) -> np.ndarray:
        path = self.shard_path(shard)
        try:
            mapped = map_array(path)
        except ValueError as error:
            why = first_line(error)
            raise InputError(f"{path} is damaged ({why}); delete it and run `atlas data cache-features`.") from None
        wanted = self._shape(shard)
        if mapped.shape != wanted or mapped.dtype != np.uint16 or not mapped.flags.c_contiguous:
            raise InputError(
                f"{path} is {mapped.dtype} of shape {mapped.shape}, but {INDEX} says uint16 of {wanted}; delete the "
                "folder and make the cache again."
            )
        return np.asarray(mapped)

    def _shape(self, shard: int) -> tuple[int, ...]:
        layout = self.layout
        return len(layout.frames_of(shard)), layout.versions, layout.tokens, layout.dim
