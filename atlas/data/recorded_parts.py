"""Episodes on their way from a recorder into a dataset: a file each, complete or absent, and the dataset they are."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from atlas.data.episode import EpisodeDataset, Numbers, RecordedEpisode, images_by_episode
from atlas.errors import InputError
from atlas.system.files import atomic_path
from atlas.types import ActionSpec

PARTS = ".parts"  # the folder of parts, in that of the dataset which they will be
_IMAGE = "image/"
_TEXTS = ("instruction", "model_xml")


def write_part(parts: Path, number: int, episode: RecordedEpisode) -> None:
    """Write an episode's file, which appears when it is complete."""
    values: dict[str, Any] = {f.name: getattr(episode, f.name) for f in fields(episode) if f.name != "images"}
    values |= {f"{_IMAGE}{camera}": images for camera, images in episode.images.items()}
    with atomic_path(part(parts, number)) as partial, partial.open("wb") as file:
        np.savez(file, **{name: value for name, value in values.items() if value is not None})


def part(parts: Path, number: int) -> Path:
    """The file of an episode."""
    return parts / f"episode_{number:05d}.npz"


def numbers_of_parts(parts: Path) -> list[int]:
    """Of the episodes that are there, in order."""
    return sorted(int(file.stem.partition("_")[2]) for file in parts.glob("episode_*.npz"))


def is_whole(file: Path) -> bool:
    """Whether an episode is there, with the bytes that it was written with."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def read_parts(parts: Path, numbers: Sequence[int]) -> Iterator[RecordedEpisode]:
    """The episodes of these numbers, read one after the other."""
    for number in numbers:
        yield read_part(part(parts, number))


def read_part(file: Path) -> RecordedEpisode:
    with np.load(file) as archive:
        values = {name: archive[name] for name in archive.files if not name.startswith(_IMAGE)}
        images = {n.removeprefix(_IMAGE): archive[n] for n in archive.files if n.startswith(_IMAGE)}
    for name in _TEXTS:
        if name in values:
            values[name] = str(values[name])
    return RecordedEpisode(images=images, **values)


@dataclass(frozen=True)
class PartEpisode:
    """A recorded episode, as an `Episode`."""

    recorded: RecordedEpisode

    def __len__(self) -> int:
        return len(self.recorded.actions)

    @property
    def instruction(self) -> str:
        return self.recorded.instruction

    @property
    def actions(self) -> np.ndarray:
        return self.recorded.actions.astype(np.float32)

    @property
    def proprio(self) -> np.ndarray:
        return self.recorded.proprio.astype(np.float32)

    @property
    def rewards(self) -> np.ndarray | None:
        return self.recorded.rewards

    @property
    def success(self) -> bool | None:
        return True  # a recorder keeps no others

    @property
    def sim_states(self) -> np.ndarray | None:
        return self.recorded.sim_states

    @property
    def init_state(self) -> np.ndarray | None:
        return self.recorded.init_state

    @property
    def model_xml(self) -> str | None:
        return self.recorded.model_xml

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        return np.asarray(self.recorded.images[camera][list(frames)])


class RecordedParts(EpisodeDataset):
    """The episodes of a recorder, all of them there. Orders and numbers are read when they are asked for."""

    format = "parts"
    sides = None

    def __init__(self, parts: Path, numbers: Sequence[int], action_spec: ActionSpec, environment: str) -> None:
        """numbers: of the episodes, in their order. Raises InputError where there are none."""
        if not numbers:
            raise InputError(f"{parts} holds no episodes.")
        self._parts = [part(parts, number) for number in numbers]
        self.path, self.environment = parts, environment
        self.action_spec, self.fps = action_spec, action_spec.control_hz
        first = read_part(self._parts[0])
        self.cameras, self.proprio_dim = list(first.images), first.proprio.shape[1]
        self._sizes = {camera: (images.shape[1], images.shape[2]) for camera, images in first.images.items()}
        self.tasks, task_of, lengths = [], [], []
        for file in self._parts:
            with np.load(file) as archive:
                instruction, length = str(archive["instruction"]), len(archive["actions"])
            if instruction not in self.tasks:
                self.tasks.append(instruction)
            task_of.append(self.tasks.index(instruction))
            lengths.append(length)
        self.lengths, self.task_of = np.array(lengths, np.int64), np.array(task_of, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def episode(self, index: int) -> PartEpisode:
        return PartEpisode(_cached(self._parts[index]))

    def images(self, camera: str, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return images_by_episode(self, camera, episodes, frames)

    def numbers(self) -> Numbers:
        read = [self.episode(number) for number in range(len(self))]
        return Numbers(np.concatenate([e.actions for e in read]), np.concatenate([e.proprio for e in read]))

    def rows(self, index: int) -> slice:
        first = int(self.lengths[:index].sum())
        return slice(first, first + int(self.lengths[index]))

    def image_size(self, camera: str) -> tuple[int, int]:
        return self._sizes[camera]

    def fingerprint(self) -> str:
        return f"{self.path}:{self.lengths.tolist()}"


@lru_cache(maxsize=1)
def _cached(file: Path) -> RecordedEpisode:
    return read_part(file)
