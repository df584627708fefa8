"""Actions executed with an error, or late. Every world supports the first; late ones need actions that are deltas."""

from __future__ import annotations

from collections import deque

import numpy as np

from atlas.environments.environment import EnvironmentSpec
from atlas.environments.perturbations.perturbation import Perturbation, standing_still

_NOISE = 0.1  # standard deviation per level, in the action's own units


class ActionNoise(Perturbation):
    """Adds a normal error to all numbers but the grippers'. Its standard deviation is 0.1 per level in the action's own
    units (5 mm and 0.05 rad in LIBERO's action space)."""

    category = "control"

    def act(self, action: np.ndarray) -> np.ndarray:
        changed = np.array(action, np.float64)
        pose = self.spec.action_spec.pose
        changed[pose] += self.rng.normal(0.0, _NOISE * self.level, len(pose))
        return changed


class ActionDelay(Perturbation):
    """Executes actions late, by one step per level; the robot stands still until the first action arrives."""

    category = "control"

    @classmethod
    def missing(cls, spec: EnvironmentSpec) -> str | None:
        if spec.action_spec.delta:
            return None
        return "its actions are absolute, and no such action makes the robot stand still until the first one arrives"

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._waiting = deque([standing_still(spec.action_spec.groups)] * level)

    def act(self, action: np.ndarray) -> np.ndarray:
        self._waiting.append(np.array(action, np.float64))
        return self._waiting.popleft()
