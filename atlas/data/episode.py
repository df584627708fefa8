"""The contract of every dataset format, and the form in which episodes are recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from atlas.types import ActionSpec


class Episode(Protocol):
    """One demonstration of T frames: the observation at t precedes the action at t."""

    def __len__(self) -> int: ...

    @property
    def instruction(self) -> str: ...

    @property
    def actions(self) -> np.ndarray:
        """float32 [T, A], in the ActionSpec's units."""
        ...

    @property
    def proprio(self) -> np.ndarray:
        """float32 [T, P]."""
        ...

    @property
    def rewards(self) -> np.ndarray | None:
        """float32 [T]; None if the source has none, as for all that follow."""
        ...

    @property
    def success(self) -> bool | None: ...

    @property
    def sim_states(self) -> np.ndarray | None:
        """float64 [T, D]."""
        ...

    @property
    def init_state(self) -> np.ndarray | None:
        """float64 [D]."""
        ...

    @property
    def model_xml(self) -> str | None: ...

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        """uint8 [n, H, W, 3], upright, in the order of `frames`; no other frame is read."""
        ...


class Numbers(NamedTuple):
    """The numbers of frames, one row per frame; mapped into memory if the format permits it."""

    actions: np.ndarray  # float32 [rows, A], in the ActionSpec's units
    proprio: np.ndarray  # float32 [rows, P]


class Side(IntEnum):
    """The side of the split that a dataset itself assigns an episode to."""

    UNSAID = -1
    TRAINING = 0
    VALIDATION = 1


class EpisodeDataset(Protocol):
    """A collection of episodes; the interface is the same for every format on disk."""

    path: Path
    format: str
    tasks: list[str]  # the distinct instructions
    cameras: list[str]
    fps: float
    action_spec: ActionSpec
    proprio_dim: int
    environment: str | None  # the name of the world it was recorded in, if Atlas has an adapter for it
    lengths: np.ndarray  # int64 [episodes], frames
    task_of: np.ndarray  # int64 [episodes], index into tasks
    sides: np.ndarray | None  # int8 [episodes], a `Side` each; None if the dataset does not assign any

    def __len__(self) -> int: ...

    def episode(self, index: int) -> Episode: ...

    def images(self, camera: str, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3], upright: at position i, frame `frames[i]` of episode `episodes[i]` (both int64 [n]).

        No other frame is read, and each file is read in one pass: ascending numbers are fastest.
        """
        ...

    def numbers(self) -> Numbers:
        """The numbers of all episodes."""
        ...

    def rows(self, index: int) -> slice | np.ndarray:
        """An episode's rows in `numbers`, in the order of its frames."""
        ...

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width of a camera's stored images."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when the data does."""
        ...


@runtime_checkable
class ChangesTasks(Protocol):
    """A dataset whose instruction may change within an episode."""

    def frame_tasks(self, index: int) -> np.ndarray | None:
        """int64 [T], an index into `tasks` for each frame of an episode; None if all have the episode's."""
        ...


@runtime_checkable
class NamesProprio(Protocol):
    """A dataset that says what its proprio's numbers are; of another, 8 numbers are taken for LIBERO's."""

    @property
    def has_libero_proprio(self) -> bool: ...

    @property
    def proprio_names(self) -> list[str]:
        """The names of proprio's numbers, as many as the dataset has, in order."""
        ...


def frame_tasks(dataset: EpisodeDataset, index: int) -> np.ndarray | None:
    """The index into `tasks` of each frame of an episode, int64 [T]; None if all have the episode's."""
    return dataset.frame_tasks(index) if isinstance(dataset, ChangesTasks) else None


def frame_instructions(dataset: EpisodeDataset, index: int) -> list[str]:
    """The instruction of each frame of an episode."""
    tasks = frame_tasks(dataset, index)
    if tasks is None:
        return [dataset.tasks[dataset.task_of[index]]] * int(dataset.lengths[index])
    return [dataset.tasks[task] for task in tasks.tolist()]


def tasks_of(dataset: EpisodeDataset, index: int) -> list[int]:
    """The tasks of an episode, each once, in the order of its frames."""
    tasks = frame_tasks(dataset, index)
    return [int(dataset.task_of[index])] if tasks is None else list(dict.fromkeys(tasks.tolist()))


def images_by_episode(dataset: EpisodeDataset, camera: str, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Implements `EpisodeDataset.images` for formats that gain nothing from seeing several episodes at once."""
    images: dict[int, np.ndarray] = {}
    for number in np.unique(episodes).tolist():
        here = np.flatnonzero(episodes == number)
        images.update(zip(here.tolist(), dataset.episode(number).images(camera, frames[here].tolist()), strict=True))
    return np.stack([images[place] for place in range(len(frames))])


@dataclass
class RecordedEpisode:
    """One episode as a recorder delivers it, with T frames; images are upright."""

    instruction: str
    images: dict[str, np.ndarray]  # {camera: uint8 [T, H, W, 3]}
    proprio: np.ndarray  # float32 [T, 8]: eef position 3, axis-angle 3, finger positions 2
    actions: np.ndarray  # float64 [T, 7]
    joints: np.ndarray | None = None  # float64 [T, 7]; None if unknown, as for all that follow
    rewards: np.ndarray | None = None  # float32 [T]
    sim_states: np.ndarray | None = None  # float64 [T, D]
    init_state: np.ndarray | None = None  # float64 [D]; None: the first of sim_states
    model_xml: str | None = None
