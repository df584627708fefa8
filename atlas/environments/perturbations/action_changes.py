"""Actions that are carried out with an error, or late. Every world has these, but for late ones in spaces of places."""

from __future__ import annotations

from collections import deque

import numpy as np

from atlas.environments.environment import EnvironmentSpec
from atlas.environments.perturbations.perturbation import Perturbation, standing_still

_NOISE = 0.1  # a level, the standard deviation, in the action's own units


class ActionNoise(Perturbation):
    """All but the grippers' numbers are off by a normal error, whose standard deviation is 0.1 a level in the action's
    own units (in LIBERO's space 5 mm and 0.05 rad)."""

    category = "control"

    def act(self, action: np.ndarray) -> np.ndarray:
        changed = np.array(action, np.float64)
        pose = self.spec.action_spec.pose
        changed[pose] += self.rng.normal(0.0, _NOISE * self.level, len(pose))
        return changed


class ActionDelay(Perturbation):
    """Actions are carried out as many steps late as the level says; before the first, it stands still."""

    category = "control"

    @classmethod
    def missing(cls, spec: EnvironmentSpec) -> str | None:
        if spec.action_spec.delta:
            return None
        return "its actions are places to go to, and none of them stands still until the first one arrives"

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._waiting = deque([standing_still(spec.action_spec.groups)] * level)

    def act(self, action: np.ndarray) -> np.ndarray:
        self._waiting.append(np.array(action, np.float64))
        return self._waiting.popleft()
