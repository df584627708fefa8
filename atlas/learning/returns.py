"""The results of a run of learning by reward: the returns of the policies before and after, on the same starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atlas.learning.improvement import Change, numbers_of, twins_in_words
from atlas.rollout.success_report import EvaluationReport

_RESAMPLED = 2000


@dataclass(frozen=True)
class OnlineResult:
    """Both reports are of the same held-out episodes."""

    folder: Path
    algorithm: str
    env: str
    before: EvaluationReport
    after: EvaluationReport
    steps: int  # in the environment
    episodes: int
    updates: int
    seconds: float  # spent learning, without the evaluations at the end
    checkpoint: str | None = None  # of the initial policy; None: new weights
    ended: str | None = None  # the reason, if the run ended before all its steps
    twins: Mapping[str, EvaluationReport] = field(default_factory=dict)  # probes of the kept policy
    control: EvaluationReport | None = None  # the initial policy after as many steps of plain imitation
    without_control: str | None = None  # the reason that there is none

    @property
    def difference(self) -> tuple[float, float, float]:
        """See `_difference`."""
        return _difference(self.before, self.after)

    @property
    def changed_success(self) -> Change | None:
        """None if neither policy ever succeeds, as in a world that does not report success."""
        return _change(self.before, self.after)

    @property
    def kept_before(self) -> bool:
        """Whether the initial policy is kept as the best: it came from a checkpoint, and the final one is worse, even
        if only by chance."""
        change = self.changed_success
        worse = self.difference[0] < 0 if change is None else change.difference < 0
        return worse and self.checkpoint is not None

    def sentence(self) -> str:
        """The result in words."""
        difference, low, high = self.difference
        change = self.changed_success
        # Success decides if it is reported: a policy that succeeds sooner may collect fewer rewards.
        lower, upper = (low, high) if change is None else change.interval
        verdict = "better" if lower > 0 else "worse" if upper < 0 else None
        claim = f"The policy has become {verdict}" if verdict else "No change can be claimed"
        sentence = f"{claim}: mean reward {_mean(self.before):.4g} before, {_mean(self.after):.4g} after"
        sentence += f" ({difference:+.4g}, 95% {low:+.4g} to {high:+.4g})"
        if change is not None:
            sentence += f"; {change.gained} starts gained, {change.lost} lost (p = {change.p:.3f})"
        sentence += self._against_control()
        kept = " The policy of before is kept as best." if self.kept_before else ""
        early = f" It ended early: {self.ended}." if self.ended else ""
        return f"{sentence}.{kept}{early}{twins_in_words(self.twins)}"

    def _against_control(self) -> str:
        if self.control is None:
            why = self.without_control if self.checkpoint is not None else None
            return "" if why is None else f"; there is no control: {why}"
        change = _change(self.control, self.after)
        if change is not None:
            return f"; against plain imitation {change.gained} gained, {change.lost} lost (p = {change.p:.3f})"
        difference, low, high = _difference(self.control, self.after)
        return f"; against plain imitation {difference:+.4g} (95% {low:+.4g} to {high:+.4g})"

    def to_dict(self) -> dict[str, Any]:
        """The machine-readable form of `atlas learn --json`."""
        difference, low, high = self.difference
        change = self.changed_success
        return {
            "run": str(self.folder),
            "algorithm": self.algorithm,
            "env": self.env,
            "env_steps": self.steps,
            "episodes": self.episodes,
            "updates": self.updates,
            "seconds": self.seconds,
            "mean_reward": {"before": _mean(self.before), "after": _mean(self.after)},
            "reward_difference": {"mean": difference, "ci95": [low, high]},
            "success_rate": {"before": self.before.success_rate, "after": self.after.success_rate},
            "starts": None if change is None else numbers_of(change),
            **self._control_numbers(),
            "best": str(self.folder / "best"),
            "kept": "before" if self.kept_before else "after",
            "ended_early": self.ended,
            "probes": {name: twin.to_dict() for name, twin in self.twins.items()},
        }

    def _control_numbers(self) -> dict[str, Any]:
        if self.control is None:
            return {"control": None, "without_control": self.without_control}
        difference, low, high = _difference(self.control, self.after)
        change = _change(self.control, self.after)
        control = {
            "mean_reward": _mean(self.control),
            "success_rate": self.control.success_rate,
            "reward_difference": {"mean": difference, "ci95": [low, high]},
            "starts": None if change is None else numbers_of(change),
        }
        return {"control": control, "without_control": None}


def _difference(first: EvaluationReport, second: EvaluationReport) -> tuple[float, float, float]:
    """The difference in mean reward between two policies on the same starts, with a 95% bootstrap interval."""
    differences = np.subtract([o.reward for o in second.outcomes], [o.reward for o in first.outcomes])
    resampled = np.random.default_rng(0).choice(differences, (_RESAMPLED, len(differences))).mean(1)
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return float(differences.mean()), low, high


def _change(first: EvaluationReport, second: EvaluationReport) -> Change | None:
    """None if neither ever succeeds, as in a world that does not report success."""
    any_success = any(o.success for o in (*first.outcomes, *second.outcomes))
    return Change.between(first, second) if any_success else None


def _mean(report: EvaluationReport) -> float:
    return float(np.mean([o.reward for o in report.outcomes]))
