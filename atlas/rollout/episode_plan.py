"""The seeds of episodes: one range per purpose, so that no two purposes ever share an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from atlas.environments.catalog import environment_spec
from atlas.environments.perturbations.choices import PerturbationChoice

Purpose = Literal["record", "selection", "final", "report", "explore"]
# Recording makes the demonstrations; selection picks the best checkpoint during training; final is the table
# at the end of training; report is `atlas eval`; explore is what a policy learns from. The order defines the seeds.
_PURPOSES: tuple[Purpose, ...] = ("record", "selection", "final", "report", "explore")
_LIMIT = 10**6


@dataclass(frozen=True)
class PlannedEpisode:
    """An episode to play. With `init_state`, float64 [D], it begins in that state of a simulator, otherwise in the one
    of its seed; the actor's random numbers follow from the seed in both cases. A perturbation follows from its name,
    its level and the seed."""

    number: int
    seed: int
    instruction: str
    init_state: np.ndarray | None = None
    perturbation: PerturbationChoice | None = None


def plan_episodes(env: str, episodes: int, purpose: Purpose, seed: int) -> list[PlannedEpisode]:
    """Episodes that go through the environment's instructions, if any, in turn; no other purpose uses their seeds."""
    instructions = environment_spec(env).instructions or ("",)
    return [
        PlannedEpisode(i, episode_seed(purpose, seed, i), instructions[i % len(instructions)]) for i in range(episodes)
    ]


def episode_seed(purpose: Purpose, seed: int, episode: int) -> int:
    """The simulator's seed of one episode; distinct for distinct (purpose, seed, episode)."""
    assert 0 <= seed < _LIMIT and 0 <= episode < _LIMIT, (seed, episode)
    return (_PURPOSES.index(purpose) * _LIMIT + seed) * _LIMIT + episode
