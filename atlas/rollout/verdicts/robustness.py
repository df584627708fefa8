"""Success by perturbation and level: the same episodes, each once as it is and once a perturbation and level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from atlas.environments.perturbations.choices import PerturbationChoice
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.proportions import mcnemar_p, paired_interval, wilson_interval
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport

_DRAWS = 4000
FEW_EPISODES = 20  # of each perturbation and level, where nobody says how many


def by_choice(
    choices: Sequence[PerturbationChoice], outcomes: Sequence[EpisodeOutcome]
) -> dict[PerturbationChoice, tuple[EpisodeOutcome, ...]]:
    """outcomes: in the order of `plan_perturbed`."""
    n = len(outcomes) // max(1, len(choices))
    return {choice: tuple(outcomes[place * n : (place + 1) * n]) for place, choice in enumerate(choices)}


def plan_perturbed(episodes: Sequence[PlannedEpisode], choices: Sequence[PerturbationChoice]) -> list[PlannedEpisode]:
    """These episodes under each choice, one choice after the other; all with numbers of their own."""
    return [
        replace(episode, number=place * len(episodes) + i, perturbation=choice)
        for place, choice in enumerate(choices)
        for i, episode in enumerate(episodes)
    ]


@dataclass(frozen=True)
class RobustnessReport:
    """The outcomes of the same n episodes as they are and under each perturbation and level."""

    env: str
    plain: tuple[EpisodeOutcome, ...]  # n
    perturbed: Mapping[PerturbationChoice, tuple[EpisodeOutcome, ...]]  # n each

    @classmethod
    def of(cls, report: EvaluationReport) -> RobustnessReport | None:
        """None where nothing was perturbed."""
        if not report.perturbed:
            return None
        n = len(next(iter(report.perturbed.values())))
        return cls(report.env, report.outcomes[:n], report.perturbed)

    @property
    def names(self) -> list[str]:
        """The names of the perturbations, in their order."""
        return list(dict.fromkeys(choice.name for choice in self.perturbed))

    def levels_of(self, name: str) -> dict[int, tuple[EpisodeOutcome, ...]]:
        return {choice.level: found for choice, found in self.perturbed.items() if choice.name == name}

    def metrics(self) -> dict[str, float]:
        """`eval/<perturbation>/success_rate`: the mean over the levels that were played, and each of them."""
        values: dict[str, float] = {}
        for name in self.names:
            levels = self.levels_of(name)
            values[f"eval/{name}/success_rate"] = _rate([o for outcomes in levels.values() for o in outcomes])
            for level, outcomes in levels.items():
                values[f"eval/{name}/success_rate/level_{level}"] = _rate(outcomes)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON. The difference of a level is to the same episodes as they are: its rate less theirs."""
        found = {}
        for name in self.names:
            levels = self.levels_of(name)
            kind = PerturbationChoice(name, 1).kind
            found[name] = {
                "category": kind.category,
                "visual": kind.visual,
                **_counts(*levels.values()),
                "levels": {
                    str(level): {**_counts(outcomes), **self._difference(outcomes)}
                    for level, outcomes in levels.items()
                },
            }
        return {"episodes": len(self.plain), "unperturbed": _counts(self.plain), "perturbations": found}

    def rows(self) -> list[tuple[str, ...]]:
        """The rows of a table: the perturbation, the success rate at each level of it, their mean and its interval."""
        rows = []
        for name in self.names:
            levels = self.levels_of(name)
            total = _counts(*levels.values())
            low, high = total["ci95"]
            each = [f"{_rate(levels[level]):.0%}" if level in levels else "-" for level in range(1, 6)]
            rows.append((name, *each, f"{total['success_rate']:.0%}", f"{low:.0%} to {high:.0%}"))
        return rows

    def _difference(self, outcomes: Sequence[EpisodeOutcome]) -> dict[str, Any]:
        pairs = [(a.success, b.success) for a, b in zip(outcomes, self.plain, strict=True)]
        gained, lost = pairs.count((True, False)), pairs.count((False, True))
        interval = paired_interval(pairs.count((True, True)), gained, lost, pairs.count((False, False)))
        return {
            "difference": (gained - lost) / len(pairs),
            "difference_ci95": list(interval),
            "p": mcnemar_p(gained, lost),
        }


ROW_TITLES = ("perturbation", "level 1", "2", "3", "4", "5", "all", "95% interval")


def mean_interval(played: Sequence[Sequence[EpisodeOutcome]]) -> tuple[float, float]:
    """The 95% interval of the mean success when the same n starts are played in several ways: a bootstrap over starts.

    played: [ways][n], each in the starts' order. An episode's outcomes under several levels are alike, so that they are
    less evidence than as many episodes. Where all starts have the same mean, which leaves nothing to draw: the means
    of the ways' own bounds (Wilson), as for one way. Raises ValueError where the ways have unlike numbers of starts.
    """
    each = np.array([[outcome.success for outcome in outcomes] for outcomes in played], float)  # [ways, n]
    of_start = each.mean(axis=0)
    if len(each) == 1 or np.ptp(of_start) < 1e-9:
        bounds = np.mean([wilson_interval(int(way.sum()), len(way)) for way in each], axis=0)
        return float(bounds[0]), float(bounds[1])
    low, high = np.quantile(_drawn(len(of_start)) @ of_start, (0.025, 0.975))
    return min(float(low), float(of_start.mean())), max(float(high), float(of_start.mean()))


@cache
def _drawn(starts: int) -> np.ndarray:
    """The weight of each start in each draw: float64 [draws, starts], rows that sum to 1; the same in all runs."""
    return np.random.default_rng(0).multinomial(starts, np.full(starts, 1 / starts), size=_DRAWS) / starts


def _counts(*played: Sequence[EpisodeOutcome]) -> dict[str, Any]:
    """played: each way in which the same starts were played."""
    outcomes = [outcome for way in played for outcome in way]
    successes = sum(outcome.success for outcome in outcomes)
    return {
        "episodes": len(outcomes),
        "successes": successes,
        "success_rate": successes / len(outcomes),
        "ci95": list(mean_interval(played)),
    }


def _rate(outcomes: Sequence[EpisodeOutcome]) -> float:
    return sum(outcome.success for outcome in outcomes) / len(outcomes)
