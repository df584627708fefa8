"""Several trainings of one recipe, which differ in their seed alone: what the recipe reaches, and whether two differ.

A single run says what one policy does. What a recipe does varies from seed to seed, often by more than episodes
explain, so that both are drawn again: seeds within each recipe, and episodes, which all runs share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile
from typing import Any

import numpy as np

from atlas.runs.run_directory import Evaluation, Run

_NOT_OF_THE_RECIPE = ("run_name", "output_dir", "seed", "wandb")
_DRAWS = 4000
_LEVEL = 0.05


@dataclass(frozen=True)
class SeedSpread:
    """The runs of one recipe."""

    name: str
    runs: tuple[str, ...]
    mean: float  # of their success rates
    spread: float | None  # standard deviation between them; None of a single run
    by_chance: float  # the standard deviation that so many episodes alone would give
    interval: tuple[float, float]  # 95%, of the mean: bootstrap over seeds and episodes

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "runs": list(self.runs),
            "mean": self.mean,
            "spread": self.spread,
            "spread_by_chance": self.by_chance,
            "ci95": list(self.interval),
        }


@dataclass(frozen=True)
class SpreadDifference:
    """Two recipes: the first's mean less the second's."""

    first: str
    second: str
    difference: float
    interval: tuple[float, float]  # 95%: bootstrap over seeds and episodes

    @property
    def differs(self) -> bool:
        return self.interval[0] > 0 or self.interval[1] < 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "difference": self.difference,
            "ci95": list(self.interval),
            "differs": self.differs,
        }


def compare_seeds(
    runs: Sequence[Run], evaluations: Mapping[str, Evaluation]
) -> tuple[list[SeedSpread], list[SpreadDifference]]:
    """The spread of each recipe, and the difference of each two recipes; both empty if no recipe has two runs.

    Recipes are compared only where all their runs have played the same episodes.
    """
    groups = _recipes([run for run in runs if run.name in evaluations])
    if all(len(group) < 2 for group in groups):
        return [], []
    outcomes = [_matrix([evaluations[run.name] for run in group]) for group in groups]
    names = _names(groups)
    spreads, means = [], {}
    for name, group, matrix in zip(names, groups, outcomes, strict=True):
        rates = [evaluations[run.name].success_rate for run in group]
        mean = float(np.mean(rates))
        chance = float(np.sqrt(mean * (1 - mean) / min(evaluations[run.name].episodes for run in group)))
        drawn = means[name] = bootstrap_means([matrix])[0] if matrix is not None else np.array(rates)
        spread = float(np.std(rates, ddof=1)) if len(rates) > 1 else None
        spreads.append(SeedSpread(name, tuple(run.name for run in group), mean, spread, chance, _middle(drawn)))
    pairs = []
    for (a, first), (b, second) in combinations(zip(names, zip(groups, outcomes, strict=True), strict=True), 2):
        played = [set(evaluations[run.name].outcomes) for run in (*first[0], *second[0])]
        if first[1] is None or second[1] is None or any(each != played[0] for each in played):
            continue
        one, other = bootstrap_means([first[1], second[1]])
        difference = float(first[1].mean() - second[1].mean())
        pairs.append(SpreadDifference(a, b, difference, _middle(one - other)))
    return spreads, pairs


def bootstrap_means(groups: Sequence[np.ndarray], draws: int = _DRAWS, seed: int = 0) -> list[np.ndarray]:
    """Means of groups of runs [runs, episodes] when runs and episodes are drawn again, with replacement; the episodes
    are the same ones in all groups. float64 [draws] of each group."""
    rng = np.random.default_rng(seed)
    episodes = groups[0].shape[1]
    weights = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=draws) / episodes  # [draws, episodes]
    means = []
    for outcomes in groups:
        count = len(outcomes)
        shares = rng.multinomial(count, np.full(count, 1 / count), size=draws) / count  # [draws, runs]
        means.append(np.einsum("dr,re,de->d", shares, outcomes.astype(float), weights, optimize=True))
    return means


def _recipes(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs grouped by recipe: their configs differ only in seeds and names. A run without a config is alone."""
    groups: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        recipe = {key: value for key, value in run.config.items() if key not in _NOT_OF_THE_RECIPE}
        for known, group in groups:
            if recipe and known == recipe:
                group.append(run)
                break
        else:
            groups.append((recipe, [run]))
    return [group for _, group in groups]


def _matrix(evaluations: Sequence[Evaluation]) -> np.ndarray | None:
    """bool [runs, episodes], the episodes in one order; None if the runs have not all played the same ones."""
    episodes = sorted(evaluations[0].outcomes)
    if any(each.outcomes.keys() != set(episodes) for each in evaluations):
        return None
    return np.array([[each.outcomes[episode] for episode in episodes] for each in evaluations])


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name per group: the common beginning of its runs' names, or the first run's name if that is empty or taken."""
    found: list[str] = []
    for group in groups:
        alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*(run.name for run in group), strict=False))
        shared = "".join(letters[0] for letters in alike).rstrip("_-./ ") if len(group) > 1 else ""
        found.append(shared if shared and shared not in found else group[0].name)
    return found


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [_LEVEL / 2, 1 - _LEVEL / 2])
    return float(low), float(high)
