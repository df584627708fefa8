"""Good data with one thing changed, as by a fault in a conversion or a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.data.episode import Episode, EpisodeDataset, Numbers, images_by_episode

Change = Callable[[np.ndarray], np.ndarray]


class Changed:
    """A dataset with another one's episodes and the given faults."""

    def __init__(
        self,
        dataset: EpisodeDataset,
        actions: Change | None = None,
        remade: Callable[[int, Episode], np.ndarray] | None = None,
        proprio: Change | None = None,
        images: Callable[[str, np.ndarray], np.ndarray] | None = None,
        cameras: dict[str, str] | None = None,
        instruction: str | None = None,
        keep: slice = slice(None),
        order: Sequence[int] | None = None,
        **attributes: Any,
    ) -> None:
        """remade: actions computed from an episode's number and the episode. cameras: {name: the one whose pictures it
        shows}. keep: these frames of each episode. order: the episodes' numbers."""
        self._dataset, self._actions, self._proprio, self._images = dataset, actions, proprio, images
        self._remade = remade
        self._cameras, self._keep = cameras or {}, keep
        self._order = list(range(len(dataset)) if order is None else order)
        self.tasks = dataset.tasks if instruction is None else [instruction]
        task_of = dataset.task_of[self._order]
        self.task_of = task_of if instruction is None else np.zeros_like(task_of)
        self.lengths = np.array([len(range(n)[keep]) for n in dataset.lengths[self._order]])
        for name, value in attributes.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._order)

    def numbers(self) -> Numbers:
        episodes = [self.episode(i) for i in range(len(self))]
        return Numbers(np.concatenate([e.actions for e in episodes]), np.concatenate([e.proprio for e in episodes]))

    def images(self, camera: str, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return images_by_episode(self, camera, episodes, frames)

    def episode(self, index: int) -> ChangedEpisode:
        number = self._order[index]
        return ChangedEpisode(self, number, self._dataset.episode(number), self.tasks[self.task_of[index]])


@dataclass
class ChangedEpisode:
    _of: Changed
    _number: int
    _episode: Episode
    instruction: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self._episode, name)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def actions(self) -> np.ndarray:
        if self._of._remade is not None:
            return np.asarray(self._of._remade(self._number, self._episode), np.float32)
        change = self._of._actions or (lambda values: values)
        return np.asarray(change(self._episode.actions.copy()), np.float32)[self._of._keep]

    @property
    def proprio(self) -> np.ndarray:
        change = self._of._proprio or (lambda values: values)
        return np.asarray(change(self._episode.proprio.copy()), np.float32)[self._of._keep]

    @property
    def rewards(self) -> np.ndarray | None:
        rewards = self._episode.rewards
        return None if rewards is None else rewards[self._of._keep]

    @property
    def sim_states(self) -> np.ndarray | None:
        states = self._episode.sim_states
        return None if states is None else states[self._of._keep]

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        shown = self._of._cameras.get(camera, camera)
        kept = range(len(self._episode))[self._of._keep]
        images = self._episode.images(shown, [kept[int(frame)] for frame in frames])
        return images if self._of._images is None else self._of._images(camera, images)
