"""Episodes for measurements: pictures that are as hard to decode as a simulator's, without simulating."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from atlas.types import ActionSpec


class MadeUp:
    """A dataset of `episodes` episodes with `frames` frames and two cameras; a pure function of the numbers."""

    path = Path("made-up")
    format = "made-up"
    fps = 20.0
    tasks = ("put the bowl on the plate", "open the drawer")
    cameras = ("agentview", "eye_in_hand")
    action_spec = ActionSpec()
    proprio_dim = 8
    environment = None

    def __init__(self, episodes: int, frames: int, size: int) -> None:
        self._frames, self._size = frames, size
        self.lengths = np.full(episodes, frames)
        self.task_of = np.arange(episodes) % len(self.tasks)

    def __len__(self) -> int:
        return len(self.lengths)

    def image_size(self, camera: str) -> tuple[int, int]:
        return self._size, self._size

    def episode(self, index: int) -> MadeUpEpisode:
        return MadeUpEpisode(index, self._frames, self._size, self.tasks[self.task_of[index]])

    def fingerprint(self) -> str:
        return f"{len(self)} x {self._frames} x {self._size}"


class MadeUpEpisode:
    """A grainy table, over which coloured blocks move."""

    rewards = sim_states = init_state = model_xml = None
    success = True

    def __init__(self, number: int, frames: int, size: int, instruction: str) -> None:
        self._number, self._frames, self._size, self.instruction = number, frames, size, instruction

    def __len__(self) -> int:
        return self._frames

    @cached_property
    def _walk(self) -> np.ndarray:
        """The blocks' positions: float [frames, 8], in [0, 1]."""
        steps = np.random.default_rng(self._number).normal(0, 0.02, (self._frames, 8)).cumsum(0)
        return 0.5 + 0.5 * np.sin(steps + np.arange(8))

    @property
    def actions(self) -> np.ndarray:
        gripper = np.sign(self._walk[:, 6:7] - 0.5)
        return np.concatenate([np.diff(self._walk, axis=0, append=0)[:, :6], gripper], axis=1).astype(np.float32)

    @property
    def proprio(self) -> np.ndarray:
        return self._walk.astype(np.float32)

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        rng = np.random.default_rng([self._number, len(camera)])
        size = self._size
        y, x = np.mgrid[0:size, 0:size] / size
        table = 120 + 60 * np.sin(6 * x + rng.uniform(0, 6)) * np.cos(5 * y) + rng.normal(0, 6, (size, size))
        ground = np.stack([table * part for part in rng.uniform(0.7, 1.1, 3)], axis=-1).clip(0, 255).astype(np.uint8)
        colours = rng.integers(0, 255, (4, 3), dtype=np.uint8)
        found = np.repeat(ground[None], len(frames), axis=0)
        side = size // 6
        for image, frame in zip(found, frames, strict=True):
            places = (self._walk[frame].reshape(4, 2) * (size - side)).astype(int)
            for (top, left), colour in zip(places, colours, strict=True):
                image[top : top + side, left : left + side] = (
                    image[top : top + side, left : left + side] // 4 + colour // 4 * 3
                )
        return found
