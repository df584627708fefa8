"""Filtered self-imitation (RFT, also called expert iteration): the policy imitates its own successes.

It acts with some noise, so that episodes differ, and trains on those that succeed, together with the demonstrations.
This needs no expert, only a world that reports success.
"""

from __future__ import annotations

from collections.abc import Sequence

from atlas.config import RftConfig
from atlas.environments.catalog import environment_spec
from atlas.learning.imitation.exploration import NoisyActor
from atlas.rollout.actor import Actor
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.evaluation import Evaluator
from atlas.rollout.experience import Keeper, PlayedEpisode


class SelfImitation:
    """Plays episodes with noise, and keeps those that succeed."""

    def __init__(self, settings: RftConfig, env: str) -> None:
        self._settings, self._spec = settings, environment_spec(env).action_spec

    def play(self, evaluator: Evaluator, actor: Actor, episodes: Sequence[PlannedEpisode], keeper: Keeper) -> None:
        noisy = NoisyActor(actor, self._spec, self._settings.noise, self._settings.shared_noise)
        evaluator.play(noisy, episodes, record=True, title="playing, with noise", keeper=keeper)

    def keeps(self, played: PlayedEpisode) -> bool:
        return played.outcome.success
