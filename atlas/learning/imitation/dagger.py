"""DAgger: the world's expert shows how to continue from states that the policy itself has reached.

A policy that imitates reaches states that no demonstration contains, through its own errors (Ross, Gordon and Bagnell,
2011). Here the policy acts first; after a few decisions, a number drawn for each episode, the expert takes over until
the episode ends (interventions as in HG-DAgger, Kelly et al., 2019). The policy trains on the expert's part of the
episodes that succeed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlas.config import DaggerConfig
from atlas.environments.catalog import find_expert
from atlas.errors import InputError
from atlas.rollout.actor import Actor
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.evaluation import Evaluator
from atlas.rollout.experience import Keeper, PlayedEpisode


class Dagger:
    """Plays episodes that the expert ends, and keeps the expert's part of them."""

    def __init__(self, settings: DaggerConfig, env: str) -> None:
        """Raises InputError for a world without an expert."""
        if find_expert(env) is None:
            raise InputError(
                f"'{env}' has no expert that could take over, so DAgger cannot learn in it. `atlas learn rft` learns "
                "from the policy's own successes."
            )
        self._settings = settings

    def play(self, evaluator: Evaluator, actor: Actor, episodes: Sequence[PlannedEpisode], keeper: Keeper) -> None:
        decisions = {e.number: _draw(e, self._settings.decisions) for e in episodes}
        evaluator.play(
            actor, episodes, record=True, title="playing, the expert takes over", hand_over=decisions, keeper=keeper
        )

    def keeps(self, played: PlayedEpisode) -> bool:
        return played.handed_over is not None and played.outcome.success


def _draw(episode: PlannedEpisode, most: int) -> int:
    """The number of decisions before the expert takes over: uniform from 0 to `most`, drawn by the episode's seed."""
    return int(np.random.default_rng([episode.seed, 2]).integers(most + 1))
