"""A world of another package that has no more than a robot has: it is no simulator."""

from __future__ import annotations

import numpy as np

from atlas.environments.catalog import World
from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.types import Observation

INSTRUCTIONS = ("press the left button", "press the right button")
SOLVED_AT, HORIZON = 5, 9


def bench_spec(image_size: int) -> EnvironmentSpec:
    return EnvironmentSpec(
        "bench", INSTRUCTIONS, ("agentview", "eye_in_hand"), (image_size, image_size), proprio_dim=8, horizon=HORIZON
    )


class Bench:
    """The left button is pressed by whatever is done for five steps; the right one never is. The picture grows brighter
    by 20 a step."""

    def __init__(self, image_size: int) -> None:
        self.spec = bench_spec(image_size)
        self._steps = 0
        self._instruction = INSTRUCTIONS[0]

    def reset(self, *, seed: int | None = None, instruction: str | None = None) -> Observation:
        self._steps = 0
        self._instruction = instruction or INSTRUCTIONS[0]
        return self._observed()

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        self._steps += 1
        solved = self._instruction == INSTRUCTIONS[0] and self._steps == SOLVED_AT
        late = self._steps == HORIZON
        return StepResult(self._observed() if observe else None, float(solved), solved, late, solved)

    def close(self) -> None:
        pass

    def _observed(self) -> Observation:
        picture = np.full((*self.spec.image_size, 3), 20 * self._steps, np.uint8)
        return Observation(dict.fromkeys(self.spec.cameras, picture), np.zeros(8, np.float32), self._instruction)


WORLD = World(bench_spec, Bench)
