"""Recipes that were trained with several seeds: which runs are one, what they reach, and whether two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas.errors import InputError
from atlas.rollout.proportions import wilson_interval
from atlas.runs.comparison import compare_runs
from atlas.runs.paired_success import SuccessComparison
from atlas.runs.run_directory import Evaluation, Run
from atlas.runs.seed_spread import bootstrap_means


def run(name: str, seed: int, outcomes: np.ndarray, first: int = 0, **changed: Any) -> Run:
    """A run whose final evaluation has these outcomes, bool [episodes]."""
    found = {("lift", first + i): bool(success) for i, success in enumerate(outcomes)}
    interval = wilson_interval(int(sum(outcomes)), len(outcomes))
    evaluation = Evaluation(Path(name), "final", 10, "cubes", found, interval)
    config = {"run_name": name, "seed": seed, "training": {"learning_rate": 0.1, **changed}}
    return Run(name, Path(name), config, {}, [evaluation])


def success_of(runs: list[Run]) -> SuccessComparison:
    success = compare_runs(runs).success
    assert success is not None
    return success


def drawn(rate: float, seed: int, episodes: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).random(episodes) < rate


def test_runs_that_differ_in_their_seed_alone_are_one_recipe() -> None:
    slow = [run(f"slow_{s}", s, drawn(0.5, s)) for s in range(3)]
    fast = [run(f"fast_{s}", s, drawn(0.9, s + 10), learning_rate=0.2) for s in range(3)]

    success = success_of([slow[0], fast[0], *slow[1:], *fast[1:]])

    assert [(each.name, each.runs) for each in success.seeds] == [
        ("slow", ("slow_0", "slow_1", "slow_2")),
        ("fast", ("fast_0", "fast_1", "fast_2")),
    ]
    rates = [each.evaluations[0].success_rate for each in slow]
    assert success.seeds[0].mean == pytest.approx(np.mean(rates))
    assert success.seeds[0].spread == pytest.approx(np.std(rates, ddof=1))
    low, high = success.seeds[0].interval
    assert low < success.seeds[0].mean < high and high - low < 0.3
    (pair,) = success.seed_pairs
    assert pair.differs and pair.difference == pytest.approx(success.seeds[0].mean - success.seeds[1].mean)
    told = success.to_dict()
    assert told["seeds"][0]["spread_by_chance"] == pytest.approx(0.05, abs=0.005)
    assert told["seed_pairs"][0]["differs"]


def test_seeds_that_differ_widely_leave_less_to_be_claimed_than_their_episodes_would() -> None:
    """Of each recipe one seed fails: a difference of means is no difference of recipes."""
    episodes = 200
    a = [run(f"a_{s}", s, drawn(rate, s, episodes)) for s, rate in enumerate((0.95, 0.95, 0.1))]
    b = [run(f"b_{s}", s, drawn(rate, s + 5, episodes), learning_rate=1.0) for s, rate in enumerate((0.9, 0.3, 0.2))]

    (pair,) = success_of([*a, *b]).seed_pairs

    assert pair.difference > 0.15 and not pair.differs


def test_of_single_runs_nothing_is_said() -> None:
    success = success_of([run("a", 0, drawn(0.5, 0)), run("b", 0, drawn(0.5, 1), learning_rate=0.3)])

    assert success.seeds == [] and success.seed_pairs == []
    assert success.pairs[0].needed is None or success.pairs[0].needed > 100


def test_recipes_on_different_episodes_are_not_compared() -> None:
    a = [run(f"a_{s}", s, drawn(0.5, s)) for s in range(2)]
    b = [run(f"b_{s}", s, drawn(0.9, s), first=500, learning_rate=0.3) for s in range(2)]

    success = success_of([*a, *b])

    assert len(success.seeds) == 2 and success.seed_pairs == []
    with pytest.raises(InputError, match="--paired: a_0 and b_0 share no episodes"):
        compare_runs([*a, *b], paired=True)


def test_the_bootstrap_covers_what_varies() -> None:
    """Of a recipe whose runs differ (0.2 between seeds) the mean of three varies by 0.2 / sqrt(3) beside episodes."""
    rng = np.random.default_rng(0)
    rates = rng.normal(0.5, 0.2, 400).clip(0, 1)
    outcomes = rng.random((400, 300)) < rates[:, None]

    (means,) = bootstrap_means([outcomes])

    assert means.std() == pytest.approx(0.2 / np.sqrt(400), rel=0.3) and abs(means.mean() - outcomes.mean()) < 0.003
