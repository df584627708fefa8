"""Whether runs differ in closed-loop success: pair by pair, on the same episodes wherever there are such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from atlas.errors import InputError
from atlas.rollout.proportions import (
    episodes_to_see,
    fisher_p,
    holm,
    mcnemar_p,
    paired_interval,
    unpaired_interval,
)
from atlas.runs.run_directory import Evaluation, Run
from atlas.runs.seed_spread import SeedSpread, SpreadDifference, compare_seeds

_LEVEL = 0.05
_PREFERRED = ("final", "report", "selection")  # the last serves to choose checkpoints, which flatters those chosen


@dataclass(frozen=True)
class Pair:
    """Whether two runs differ. A difference is the first one's success rate less the second one's, as a share."""

    first: str
    second: str
    episodes: tuple[int, int]  # how many of each were compared
    telling: tuple[int, int] | None  # of the shared episodes, those only one of them solves; None: none shared
    difference: float
    interval: tuple[float, float]  # 95%, of this pair alone
    p: float  # exact; of several pairs, adjusted for their number
    verdict: str
    needed: int | None = None  # episodes needed to detect a difference of this size with 80% power; None: unknown

    @property
    def differs(self) -> bool:
        return self.p < _LEVEL

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "paired": self.telling is not None,
            "episodes": list(self.episodes),
            "first_only": None if self.telling is None else self.telling[0],
            "second_only": None if self.telling is None else self.telling[1],
            "difference": self.difference,
            "ci95": list(self.interval),
            "p": self.p,
            "differs": self.differs,
            "episodes_needed": self.needed,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class SuccessComparison:
    evaluations: dict[str, Evaluation]  # of the runs that have one, by the run's name
    pairs: list[Pair]
    notes: list[str]  # what a reader of the numbers must know
    seeds: list[SeedSpread] = field(default_factory=list)  # recipes, where one has been trained with several seeds
    seed_pairs: list[SpreadDifference] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": {
                name: {
                    "purpose": found.purpose,
                    "step": found.step,
                    "env": found.env,
                    "episodes": found.episodes,
                    "successes": found.successes,
                    "success_rate": found.success_rate,
                    "ci95": list(found.interval),
                    "file": str(found.file),
                }
                for name, found in self.evaluations.items()
            },
            "pairs": [pair.to_dict() for pair in self.pairs],
            "notes": self.notes,
            "seeds": [spread.to_dict() for spread in self.seeds],
            "seed_pairs": [pair.to_dict() for pair in self.seed_pairs],
        }


def compare_success(runs: Sequence[Run], paired: bool = False) -> SuccessComparison | None:
    """Compare every two runs: the final evaluations where all have one, else the last ones of another purpose that
    all have. None where no run has been evaluated.

    Two runs on the same episodes (instruction and seed) are compared with the exact McNemar test, others with
    Fisher's; of several pairs, the p values are adjusted for their number (Holm), so that with 95% confidence no
    difference is claimed where there is none. Recipes that were trained with several seeds are compared as such too.
    paired: raises InputError where two have not played the same episodes.
    """
    evaluated = [run for run in runs if run.evaluations]
    if not evaluated:
        return None
    chosen, notes = _choose(evaluated)
    notes += [f"{run.name} has not been evaluated." for run in runs if not run.evaluations]
    notes += [f"{name} was evaluated with {' and '.join(each.probes)}." for name, each in chosen.items() if each.probes]
    comparable = []
    for first, second in combinations(chosen, 2):
        if chosen[first].env == chosen[second].env:
            comparable.append((first, second))
        else:
            notes.append(
                f"{first} and {second} are not compared: one was evaluated in {chosen[first].env}, "
                f"the other in {chosen[second].env}."
            )
    pairs = [_compare(a, chosen[a], b, chosen[b]) for a, b in comparable]
    adjusted = holm([pair.p for pair in pairs])
    pairs = [_with_verdict(replace(pair, p=p), len(pairs)) for pair, p in zip(pairs, adjusted, strict=True)]
    if paired and (unpaired := [pair for pair in pairs if pair.telling is None]):
        first, second = unpaired[0].first, unpaired[0].second
        raise InputError(
            f"--paired: {first} and {second} share no episodes, or not all of the smaller one's. Evaluate both with "
            "`atlas eval --seed 0 --out FILE` and as many episodes, and compare these files."
        )
    if any(pair.telling is None for pair in pairs):
        notes.append(
            "Different episodes show less: evaluate each policy with `atlas eval --seed 0 --out FILE`, which gives all "
            "of them the same episodes, and compare these files."
        )
    return SuccessComparison(chosen, pairs, notes, *compare_seeds(evaluated, chosen))


def _choose(runs: Sequence[Run]) -> tuple[dict[str, Evaluation], list[str]]:
    """One evaluation per run, all of the same purpose if possible, and notes for the user about the choice."""
    by_purpose = [{each.purpose: each for each in run.evaluations} for run in runs]  # the last one of each purpose
    for purpose in _PREFERRED:
        if all(purpose in found for found in by_purpose):
            chosen = {run.name: found[purpose] for run, found in zip(runs, by_purpose, strict=True)}
            if purpose != "selection":
                return chosen, []
            steps = ", ".join(f"{name} at step {each.step}" for name, each in chosen.items())
            without = ", ".join(run.name for run, found in zip(runs, by_purpose, strict=True) if "final" not in found)
            note = f"No final evaluation of {without}: the last ones during training are compared ({steps})."
            return chosen, [note]
    chosen = {
        run.name: next((found[purpose] for purpose in _PREFERRED if purpose in found), run.evaluations[-1])
        for run, found in zip(runs, by_purpose, strict=True)
    }
    purposes = ", ".join(f"{name} {each.purpose}" for name, each in chosen.items())
    return chosen, [f"The evaluations are of different purposes ({purposes})."]


def _compare(a: str, first: Evaluation, b: str, second: Evaluation) -> Pair:
    shared = first.outcomes.keys() & second.outcomes.keys()
    if len(shared) == min(first.episodes, second.episodes):
        counts = {(x, y): 0 for x in (True, False) for y in (True, False)}
        for episode in shared:
            counts[first.outcomes[episode], second.outcomes[episode]] += 1
        one, other = counts[True, False], counts[False, True]
        interval = paired_interval(counts[True, True], one, other, counts[False, False])
        n = len(shared)
        return Pair(a, b, (n, n), (one, other), (one - other) / n, interval, mcnemar_p(one, other), "")
    table = (first.successes, first.episodes, second.successes, second.episodes)
    difference = first.success_rate - second.success_rate
    return Pair(a, b, (table[1], table[3]), None, difference, unpaired_interval(*table), fisher_p(*table), "")


def _with_verdict(pair: Pair, pairs: int) -> Pair:
    # Of several pairs, the most different one has to pass this level.
    n = pair.episodes[0]
    needed = None if pair.telling is None else episodes_to_see(pair.telling[0] / n, pair.telling[1] / n, _LEVEL / pairs)
    pair = replace(pair, needed=needed)
    if pair.differs:
        return replace(pair, verdict=f"{pair.first if pair.difference > 0 else pair.second} succeeds more often")
    if pair.telling is None:
        verdict = f"no difference can be claimed from {pair.episodes[0]} and {pair.episodes[1]} different episodes"
        return replace(pair, verdict=verdict)
    verdict = f"no difference can be claimed from these {n} episodes"
    if needed is None:
        return replace(pair, verdict=f"{verdict}; both succeed equally often")
    more = max(1, needed - n)
    return replace(
        pair,
        verdict=f"{verdict}; about {more:,} more would be needed to see one of this size at 80% power",
    )
