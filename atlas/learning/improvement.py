"""Tells whether learning has helped: compares the policies before and after it, and the control, on held-out
episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas.rollout.proportions import mcnemar_p, paired_interval
from atlas.rollout.success_report import EvaluationReport
from atlas.rollout.verdicts.twins import TWIN_WORDS

_LEVEL = 0.05


@dataclass(frozen=True)
class Change:
    """The change from one policy to another, on the same n episodes."""

    gained: int  # episodes that only the second solves
    lost: int  # that only the first solves
    difference: float  # of the success rates
    interval: tuple[float, float]  # 95%
    p: float  # exact McNemar test

    @classmethod
    def between(cls, first: EvaluationReport, second: EvaluationReport) -> Change:
        """Compare two reports of the same episodes."""
        pairs = [(a.success, b.success) for a, b in zip(first.outcomes, second.outcomes, strict=True)]
        assert [o.seed for o in first.outcomes] == [o.seed for o in second.outcomes]
        gained, lost = pairs.count((False, True)), pairs.count((True, False))
        low, high = paired_interval(pairs.count((True, True)), gained, lost, pairs.count((False, False)))
        return cls(gained, lost, (gained - lost) / len(pairs), (low, high), mcnemar_p(gained, lost))


@dataclass(frozen=True)
class Improvement:
    """The result of a run of rounds."""

    folder: Path
    env: str
    reports: Mapping[str, EvaluationReport]  # before, after, control
    steps: int  # in the environment
    episodes: int
    twins: Mapping[str, EvaluationReport] = field(default_factory=dict)  # probes of the kept policy

    @property
    def over_before(self) -> Change:
        return Change.between(self.reports["before"], self.reports["after"])

    @property
    def over_control(self) -> Change:
        return Change.between(self.reports["control"], self.reports["after"])

    @property
    def worse(self) -> bool:
        """Whether the policy succeeds less often than before, even if only by chance; then the initial one is kept."""
        return self.over_before.difference < 0

    def sentence(self) -> str:
        """The result in words."""
        change, control = self.over_before, self.over_control
        if change.p < _LEVEL:
            verdict = "The policy has become worse" if self.worse else "The policy has become better"
        else:
            verdict = "No change can be claimed"
        sentence = f"{verdict}: {change.gained} starts gained, {change.lost} lost (p = {change.p:.3f})"
        sentence += f"; against plain imitation {control.gained} gained, {control.lost} lost (p = {control.p:.3f})."
        kept = " The policy of before is kept as best." if self.worse else ""
        return f"{sentence}{kept}{twins_in_words(self.twins)}"

    def to_dict(self) -> dict[str, Any]:
        """The machine-readable form of `atlas learn --json`."""
        return {
            "run": str(self.folder),
            "env": self.env,
            "episodes": self.episodes,
            "env_steps": self.steps,
            "success": {
                what: {
                    "successes": sum(o.success for o in report.outcomes),
                    "episodes": len(report.outcomes),
                    "success_rate": report.success_rate,
                    "checkpoint": report.checkpoint,
                }
                for what, report in self.reports.items()
            },
            **{f"over_{what}": numbers_of(change) for what, change in self._changes().items()},
            "best": str(self.folder / "best"),
            "kept": "before" if self.worse else "after",
            "probes": {name: twin.to_dict() for name, twin in self.twins.items()},
        }

    def _changes(self) -> dict[str, Change]:
        return {"before": self.over_before, "control": self.over_control}


def twins_in_words(twins: Mapping[str, EvaluationReport]) -> str:
    """A sentence about the probes of the kept policy; empty if there are none."""
    counts = []
    for name, twin in twins.items():
        counts.append(f"{sum(o.success for o in twin.outcomes)} of {len(twin.outcomes)} {TWIN_WORDS[name]}")
    return f" Successes of the kept policy: {', '.join(counts)}." if counts else ""


def numbers_of(change: Change) -> dict[str, Any]:
    """The machine-readable form."""
    return {
        "gained": change.gained,
        "lost": change.lost,
        "difference": change.difference,
        "ci95": list(change.interval),
        "p": change.p,
    }
