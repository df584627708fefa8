"""Findings of all checks as a walk through the known silent bugs: each a problem, ruled out, or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atlas.checks.finding import Finding
from atlas.checks.silent_bugs import SILENT_BUGS, BugId, SilentBug
from atlas.system.files import finite, write_json

Status = Literal["ok", "problem", "undecided"]
DIAGNOSIS = "doctor.json"  # in a run's folder
_GOOD = 0.9  # of the episodes: a policy that succeeds so often needs no advice
_NEEDS: dict[BugId, str] = {  # what would decide it
    "unnormalised": "reference answers of the checkpoint",
    "statistics": "reference answers of the checkpoint, or its dataset",
    "average": "reference answers of the checkpoint",
    "precision": "reference answers of the checkpoint",
    "words": "reference answers of the checkpoint",
    "resize": "reference answers of the checkpoint, or rollouts",
    "train_mode": "the policy",
    "dropout": "the policy",
    "whole_chunk": "rollouts of a checkpoint with reference answers",
    "settling": "rollouts of a policy that knows how its episodes began",
    "rotation_flip": "proprio like LIBERO's, or actions that are poses",
}
_OTHERWISE = "the dataset, or rollouts"


@dataclass(frozen=True)
class WalkLine:
    bug: SilentBug
    status: Status
    evidence: str
    fix: str | None = None  # of a problem
    severe: bool = True

    @property
    def label(self) -> str:
        """A line for people: what is wrong, or what was looked at."""
        return self.bug.title if self.status == "problem" else self.bug.topic

    def to_dict(self) -> dict[str, Any]:
        return {
            "bug": self.bug.id,
            "title": self.label,
            "status": self.status,
            "evidence": self.evidence,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class Diagnosis:
    lines: Sequence[WalkLine]
    advice: str  # one sentence

    @property
    def problems(self) -> list[WalkLine]:
        return [line for line in self.lines if line.status == "problem"]

    def to_dict(self) -> dict[str, Any]:
        """For `atlas doctor RUN --json`, and for the run's doctor.json."""
        return {"advice": self.advice, "lines": [line.to_dict() for line in self.lines]}

    def save(self, run_dir: Path) -> None:
        """Write it into the run's folder. Raises OSError."""
        write_json(run_dir / DIAGNOSIS, finite(self.to_dict()))


def walk(findings: Sequence[Finding], success: tuple[int, int] | None = None) -> Diagnosis:
    """success: (successes, episodes) of rollouts, where there were some."""
    lines = [_line(bug, findings) for bug in SILENT_BUGS]
    return Diagnosis(lines, _advice(lines, findings, success))


def _line(bug: SilentBug, findings: Sequence[Finding]) -> WalkLine:
    about = [finding for finding in findings if bug.id in finding.bugs]
    wrong = sorted((f for f in about if f.severity != "info"), key=lambda f: f.severity != "error")
    if wrong:
        return WalkLine(bug, "problem", wrong[0].message, wrong[0].fix, wrong[0].severity == "error")
    if about:
        return WalkLine(bug, "ok", "; ".join(dict.fromkeys(finding.message for finding in about)))
    return WalkLine(bug, "undecided", f"it would take {_NEEDS.get(bug.id, _OTHERWISE)}")


def _advice(lines: Sequence[WalkLine], findings: Sequence[Finding], success: tuple[int, int] | None) -> str:
    problems = sorted((line for line in lines if line.status == "problem"), key=lambda line: not line.severe)
    if problems:
        first = problems[0]
        return f"{first.bug.title}: {_lower(first.fix or first.bug.advice)}"
    other = next((f for f in findings if f.severity == "error"), None)
    if other is not None:
        return f"No known silent bug, but {_lower(other.message)}: {_lower(other.fix or '')}"
    if success is None:
        return "No known silent bug was found; rollouts (--episodes) would decide more."
    successes, episodes = success
    if successes >= _GOOD * episodes:
        return f"Nothing needs to be done: the policy succeeds in {successes} of {episodes} episodes."
    return (
        f"No known silent bug explains {episodes - successes} failures in {episodes} episodes: look at their films, "
        "and train for longer or record more demonstrations of what fails."
    )


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
