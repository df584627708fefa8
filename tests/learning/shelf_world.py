"""A simulator of ten steps, of LIBERO's actions and proprio: episodes take no time, whatever a policy does in them.

In `shelf` every episode succeeds at its tenth step, in `bare_shelf` none does. `tall_shelf` has a proprio of its own.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from atlas.environments.catalog import World
from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.types import Observation

HORIZON = 10
INSTRUCTIONS = ("pick up the red cube", "pick up the green cube")


def shelf_spec(name: str, proprio_dim: int, image_size: int) -> EnvironmentSpec:
    size = (image_size, image_size)
    return EnvironmentSpec(name, INSTRUCTIONS, ("agentview", "eye_in_hand"), size, proprio_dim, HORIZON)


class Shelf:
    """Its state is the time, s, and the place of the hand."""

    def __init__(self, name: str, proprio_dim: int, image_size: int) -> None:
        self.spec = shelf_spec(name, proprio_dim, image_size)
        self._place, self._steps, self._told = np.zeros(3), 0, INSTRUCTIONS[0]

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        self._told = instruction or INSTRUCTIONS[0]
        self._place, self._steps = np.random.default_rng(seed).uniform(-1, 1, 3), 0
        if init_state is not None:
            self.set_state(init_state)
        return self.observe()

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        clipped = np.clip(np.asarray(action, np.float64), -1, 1)
        self._place, self._steps = self._place + 0.1 * clipped[:3], self._steps + 1
        over = self._steps >= HORIZON
        won = over and self.spec.name != "bare_shelf"
        return StepResult(self.observe() if observe else None, float(won), won, over and not won, won, clipped)

    def observe(self) -> Observation:
        down, across = np.mgrid[: self.spec.image_size[0], : self.spec.image_size[1]] / self.spec.image_size[0]
        pattern = np.stack([200 * down**2, 120 * across, 90 * down * across], -1)  # no turn of it is like another
        shown = np.clip(pattern + 20 * (1 + self._place), 0, 255).astype(np.uint8)
        images = dict.fromkeys(self.spec.cameras, shown)
        proprio = np.zeros(self.spec.proprio_dim, np.float32)
        proprio[:3] = self._place
        return Observation(images, proprio, self._told)

    def get_state(self) -> np.ndarray:
        return np.array([self._steps / self.spec.action_spec.control_hz, *self._place])

    def set_state(self, state: np.ndarray) -> None:
        self._place, self._steps = np.array(state[1:]), round(state[0] * self.spec.action_spec.control_hz)

    def positions(self) -> dict[str, np.ndarray]:
        return {"hand": self._place, "left finger": self._place, "right finger": self._place}

    def picture(self, size: int) -> np.ndarray:
        return np.zeros((size, size, 3), np.uint8)

    def close(self) -> None:
        pass


def _world(name: str, proprio_dim: int = 8) -> World:
    return World(partial(shelf_spec, name, proprio_dim), partial(Shelf, name, proprio_dim))


SHELF, BARE, TALL = _world("shelf"), _world("bare_shelf"), _world("tall_shelf", 9)
