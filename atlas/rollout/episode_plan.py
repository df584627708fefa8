"""Which episodes are played: their seeds, one range a purpose, so that no two purposes ever share an episode."""

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
    """An episode to be played. With `init_state`, float64 [D], it begins in that state of a simulator, and otherwise as
    its seed says; the actor draws by the seed either way. The perturbation, where there is one, follows from its name,
    its level and the seed."""

    number: int
    seed: int
    instruction: str
    init_state: np.ndarray | None = None
    perturbation: PerturbationChoice | None = None


def plan_episodes(env: str, episodes: int, purpose: Purpose, seed: int) -> list[PlannedEpisode]:
    """Episodes in turn over the environment's instructions, if it has any, with seeds that no other purpose uses."""
    instructions = environment_spec(env).instructions or ("",)
    return [
        PlannedEpisode(i, episode_seed(purpose, seed, i), instructions[i % len(instructions)]) for i in range(episodes)
    ]


def episode_seed(purpose: Purpose, seed: int, episode: int) -> int:
    """The simulator's seed of one episode; distinct for distinct (purpose, seed, episode)."""
    assert 0 <= seed < _LIMIT and 0 <= episode < _LIMIT, (seed, episode)
    return (_PURPOSES.index(purpose) * _LIMIT + seed) * _LIMIT + episode
