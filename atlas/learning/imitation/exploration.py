"""Noise on a policy's actions, to find other ways to succeed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from atlas.policies.processor import PolicyProcessor
from atlas.rollout.actor import Actor
from atlas.types import ActionSpec, Observation


class NoisyActor:
    """An actor with Gaussian noise on its pose, but not on its grippers.

    The noise depends on the episode's seed and the number of the decision only. All actions of a decision share a part
    of its variance, because noise that is independent per step cancels and moves the hand less.
    """

    def __init__(self, actor: Actor, spec: ActionSpec, deviation: float, shared: float) -> None:
        """deviation: in units of the actions, of which most lie within [-1, 1]. shared: the shared part of the
        variance, 0 to 1."""
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
