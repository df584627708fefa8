"""A small environment of gymnasium's interface, with nested observations and an info that tells success."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 6


class Toy(gymnasium.Env):
    """A point on a line from -1 to 1, which has won beyond 0.5 for a step; falling below -0.5 ends it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None, colour: int = 200) -> None:
        self.render_mode, self._colour = render_mode, colour
        self.action_space = spaces.Box(-0.25, 0.25, (1, 2), np.float32)
        image = spaces.Box(0, 255, (24, 32, 3), np.uint8)
        numbers = spaces.Box(-1, 1, (2,), np.float64)
        parts = {"pixels": spaces.Dict({"top": image}), "agent_pos": numbers, "goal": spaces.Discrete(3)}
        self.observation_space = spaces.Dict(parts)
        self._place = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = float(self.np_random.uniform(-0.1, 0.1))
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._place += float(action[0, 0])
        return self._seen(), self._place, self._place < -0.5, False, {"solved": np.array([self._place > 0.5])}

    def render(self) -> np.ndarray:
        return np.full((60, 80, 3), self._colour, np.uint8)

    def _seen(self) -> Any:
        image = np.full((24, 32, 3), int(100 + 100 * np.clip(self._place, -1, 1)), np.uint8)
        return {"pixels": {"top": image}, "agent_pos": np.array([self._place, 0.25]), "goal": 1}


gymnasium.register("Toy-v0", lambda **kwargs: Toy(**kwargs), max_episode_steps=LENGTH)
