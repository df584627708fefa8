"""Seeds of simulated episodes: one range a purpose, so that no two purposes ever share an episode."""

from __future__ import annotations

from typing import Literal

Purpose = Literal["record", "selection", "final", "report"]
# Recording makes the demonstrations; selection picks the best checkpoint during training; final is the table
# at the end of training; report is `atlas eval`.
_PURPOSES: tuple[Purpose, ...] = ("record", "selection", "final", "report")
_LIMIT = 10**6


def episode_seed(purpose: Purpose, seed: int, episode: int) -> int:
    """The simulator's seed of one episode; distinct for distinct (purpose, seed, episode)."""
    assert 0 <= seed < _LIMIT and 0 <= episode < _LIMIT, (seed, episode)
    return (_PURPOSES.index(purpose) * _LIMIT + seed) * _LIMIT + episode
