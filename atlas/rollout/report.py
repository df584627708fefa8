"""What an evaluation found, in numbers with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EpisodeOutcome:
    instruction: str  # that was scored
    seed: int
    success: bool
    reward: float
    length: int
    video: str | None = None


@dataclass(frozen=True)
class EvaluationReport:
    """The outcomes of closed-loop episodes."""

    env: str
    checkpoint: str
    outcomes: tuple[EpisodeOutcome, ...]

    @property
    def success_rate(self) -> float:
        return _rate(self.outcomes)

    def by_instruction(self) -> dict[str, list[EpisodeOutcome]]:
        groups: dict[str, list[EpisodeOutcome]] = {}
        for outcome in self.outcomes:
            groups.setdefault(outcome.instruction, []).append(outcome)
        return dict(sorted(groups.items()))

    def metrics(self) -> dict[str, float]:
        """`eval/*` as the dashboards show it."""
        n = len(self.outcomes)
        values = {
            "eval/success_rate": self.success_rate,
            "eval/mean_reward": sum(o.reward for o in self.outcomes) / n,
            "eval/episode_length": sum(o.length for o in self.outcomes) / n,
        }
        for instruction, outcomes in self.by_instruction().items():
            values[f"eval/success_rate/{instruction.replace(' ', '_')}"] = _rate(outcomes)
        return values

    def to_dict(self) -> dict[str, Any]:
        """The machine-readable form of `atlas eval --json`."""
        successes = sum(o.success for o in self.outcomes)
        return {
            "env": self.env,
            "checkpoint": self.checkpoint,
            "episodes": len(self.outcomes),
            "successes": successes,
            "success_rate": self.success_rate,
            "ci95": list(wilson_interval(successes, len(self.outcomes))),
            "mean_episode_length": sum(o.length for o in self.outcomes) / len(self.outcomes),
            "per_instruction": {
                instruction: {
                    "episodes": len(outcomes),
                    "successes": sum(o.success for o in outcomes),
                    "success_rate": _rate(outcomes),
                }
                for instruction, outcomes in self.by_instruction().items()
            },
        }


def wilson_interval(successes: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, 1927); 95% with the default z."""
    if episodes == 0:
        return 0.0, 1.0
    p, n = successes / episodes, episodes
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At rates of 0 and 1 a bound is the rate itself, which rounding may just miss.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def _rate(outcomes: Sequence[EpisodeOutcome]) -> float:
    return sum(o.success for o in outcomes) / len(outcomes)
