"""The result of a check of data, of a policy or of rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from atlas.checks.silent_bugs import BugId

# The last three are of a policy in rollouts.
CheckId = Literal[
    "view",
    "gripper",
    "lag",
    "scale",
    "language",
    "actions",
    "split",
    "video",
    "replay",
    "stats",
    "answers",
    "timing",
    "starts",
]
# error: a policy trained on this cannot work as it is evaluated; warning: it may not; info: what was seen.
Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found. evidence: plain numbers, lists and paths of pictures, by name."""

    check: CheckId
    severity: Severity
    message: str
    fix: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fatal: bool = False  # for errors: training refuses such data
    bugs: tuple[BugId, ...] = ()  # the known silent bugs that it names or, where nothing is wrong, rules out

    def __post_init__(self) -> None:
        assert (self.fix is None) == (self.severity == "info"), "every problem comes with what to do about it"

    def to_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "severity": self.severity,
            "message": self.message,
            "evidence": dict(self.evidence),
            "fix": self.fix,
            "bugs": list(self.bugs),
        }
