"""Transitions: the results of an actor's decisions, for learning from experience."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas.rollout.episode_player import Segment
from atlas.types import Observation


@dataclass(frozen=True)
class Transition:
    """One decision: the observation, the n executed actions, and the next observation, also at the end of an episode.
    There n may be smaller than the number of planned actions. The observations are the environment's own."""

    observation: Observation
    actions: np.ndarray  # float32 [n, A], in the ActionSpec's units, as the environment clipped them
    reward: float  # the sum of `rewards`
    rewards: np.ndarray  # float32 [n], per step
    next_observation: Observation
    terminated: bool  # the task is over: later states have no value
    truncated: bool  # the time was up
    intermediate: tuple[Observation, ...] = ()  # after each of the n actions but the last, where that was asked for

    @classmethod
    def between(cls, before: Observation, after: Segment) -> Transition:
        """after: the segment of a player with transitions."""
        assert after.executed is not None and after.observation is not None
        return cls(
            before,
            after.executed.actions,
            after.reward,
            after.executed.rewards,
            after.observation,
            after.terminated,
            after.truncated,
            after.intermediate,
        )
