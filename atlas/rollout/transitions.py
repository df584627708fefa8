"""What an actor's decisions led to: what learning from experience is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas.rollout.episode_player import Segment
from atlas.types import Observation


@dataclass(frozen=True)
class Transition:
    """One decision: what was seen, the n actions that were executed, and what was seen then, also where the episode is
    over. Where it is, n may be less than what the actor planned. The observations are the environment's own."""

    observation: Observation
    actions: np.ndarray  # float32 [n, A], in the ActionSpec's units, as the environment clipped them
    reward: float  # summed
    rewards: np.ndarray  # float32 [n], a step
    next_observation: Observation
    terminated: bool  # the task is over: what comes after has no value
    truncated: bool  # the time was up

    @classmethod
    def between(cls, before: Observation, after: Segment) -> Transition:
        """after: what a player that was asked for transitions said."""
        assert after.executed is not None and after.observation is not None
        return cls(
            before,
            after.executed.actions,
            after.reward,
            after.executed.rewards,
            after.observation,
            after.terminated,
            after.truncated,
        )
