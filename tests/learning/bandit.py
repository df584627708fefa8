"""A world of one decision, which succeeds if the action is near the number that is seen: learned in a second."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

NAME = "gym:Bandit-v0"


class Bandit(gymnasium.Env):
    def __init__(self, near: float = 0.3) -> None:
        self._near, self._wanted = near, 0.0
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._wanted = float(self.np_random.uniform(-0.8, 0.8))
        return np.array([self._wanted], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        success = abs(float(action[0]) - self._wanted) < self._near
        return np.array([self._wanted], np.float32), float(success), True, False, {"success": success}


gymnasium.register("Bandit-v0", lambda **kwargs: Bandit(**kwargs), max_episode_steps=5)
