"""Acting otherwise than the policy would, to see what else succeeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from atlas.policies.processor import PolicyProcessor
from atlas.rollout.actor import Actor
from atlas.types import ActionSpec, Observation


class NoisyActor:
    """An actor with Gaussian noise on its pose; grippers do what it says.

    The noise follows from the episode's seed and the number of the decision alone. A share of its variance is one draw
    for all actions of a decision: noise that is drawn for each step moves a hand less than its length says.
    """

    def __init__(self, actor: Actor, spec: ActionSpec, deviation: float, shared: float) -> None:
        """deviation: in units of the actions, of which most lie within [-1, 1]. shared: of the variance, 0 to 1."""
        self._actor, self._pose = actor, list(spec.pose)
        self._shared, self._own = deviation * shared**0.5, deviation * (1 - shared) ** 0.5
        self._draws: dict[int, np.random.Generator] = defaultdict(np.random.default_rng)

    @property
    def processor(self) -> PolicyProcessor | None:
        return self._actor.processor

    def reset(self, episode: int, seed: int) -> None:
        self._actor.reset(episode, seed)
        self._draws[episode] = np.random.default_rng([seed, 1])

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        return {number: self._noisy(number, actions) for number, actions in self._actor.plan(observations).items()}

    def _noisy(self, number: int, actions: np.ndarray) -> np.ndarray:
        draw, noisy = self._draws[number], actions.copy()
        shape = (len(actions), len(self._pose))
        noisy[:, self._pose] += self._shared * draw.normal(size=shape[1]) + self._own * draw.normal(size=shape)
        return noisy
