"""A small world in which a bit that differs becomes another outcome within an episode, as contact does to a robot.

A point on the unit interval is stretched and folded at each step; the first number of an action shifts it.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np

from atlas.environments.catalog import World
from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.types import Observation

INSTRUCTIONS = ("go high", "go low")
HORIZON = 40
DIES = "DRIFT_DIES"  # a file: the process that begins the episode with the seed in it dies, and removes it before


def drift_spec(image_size: int) -> EnvironmentSpec:
    return EnvironmentSpec(
        "drift", INSTRUCTIONS, ("agentview", "eye_in_hand"), (image_size, image_size), proprio_dim=8, horizon=HORIZON
    )


class Drift:
    """Won when the point is at its end of the interval after 25 steps or more; rewards are its places, to the bit."""

    def __init__(self, image_size: int) -> None:
        self.spec = drift_spec(image_size)
        self._place, self._steps, self._high = 0.5, 0, True

    def reset(self, *, seed: int | None = None, instruction: str | None = None) -> Observation:
        _die_if_told(seed)
        self._place = float(np.random.default_rng(seed).uniform(0.1, 0.9))
        self._steps, self._high = 0, instruction != INSTRUCTIONS[1]
        return self._observed()

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        shifted = (self._place + 0.1 * float(action[0])) % 1.0
        self._place = 3.99 * shifted * (1 - shifted)
        self._steps += 1
        there = self._place > 0.98 if self._high else self._place < 0.02
        won = self._steps >= 25 and there
        late = self._steps >= HORIZON
        return StepResult(self._observed() if observe else None, self._place, won, late and not won, won)

    def close(self) -> None:
        pass

    def _observed(self) -> Observation:
        picture = np.full((*self.spec.image_size, 3), int(255 * self._place), np.uint8)
        proprio = np.full(8, self._place, np.float32)
        return Observation(dict.fromkeys(self.spec.cameras, picture), proprio, INSTRUCTIONS[not self._high])


def _die_if_told(seed: int | None) -> None:
    file = Path(os.environ.get(DIES, ""))
    if file.is_file() and seed is not None and int(file.read_text()) == seed:
        if file.name != "always":
            file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class Scene(Drift):
    """The same, with a picture that has an above and a below, a left and a right."""

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size)
        self.spec = scene_spec(image_size)

    def _observed(self) -> Observation:
        seen = super()._observed()
        height, width = self.spec.image_size
        rows, columns = np.mgrid[:height, :width]
        light = 0.2 + 0.5 * (rows < height // 3) + 0.3 * (columns < width // 4)
        picture = (255 * light[..., None] * np.array([1.0, 0.8, 0.6])).astype(np.uint8)
        return replace(seen, images=dict.fromkeys(self.spec.cameras, picture))


def scene_spec(image_size: int) -> EnvironmentSpec:
    return replace(drift_spec(image_size), name="scene")


WORLD = World(drift_spec, Drift)
SCENE = World(scene_spec, Scene)
