"""An actor that looks at nothing and asks for zeros."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from atlas.types import Observation


class Still:
    """Of every episode 50 actions [A] of zeros at a time."""

    processor = None

    def __init__(self, numbers: int) -> None:
        self._actions = np.zeros((50, numbers))

    def reset(self, episode: int, seed: int) -> None:
        pass

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        return dict.fromkeys(observations, self._actions)
