"""What an evaluation found, in numbers with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas.errors import InputError
from atlas.rollout.episode_plan import Purpose
from atlas.rollout.proportions import wilson_interval
from atlas.system.documents import read_json
from atlas.system.files import write_json

_OUTCOME_FIELDS = ("seed", "instruction", "success", "reward", "length")


@dataclass(frozen=True)
class EpisodeOutcome:
    instruction: str  # that was scored
    seed: int
    success: bool
    reward: float
    length: int  # steps
    video: str | None = None  # the film, where there is one on this machine


@dataclass(frozen=True)
class EvaluationReport:
    """The outcomes of closed-loop episodes, and what they were for."""

    env: str
    checkpoint: str
    outcomes: tuple[EpisodeOutcome, ...]
    purpose: Purpose = "report"
    step: int | None = None  # optimizer steps that the policy had learned for; None where nobody said
    seed: int = 0  # that the episodes' seeds follow from
    probes: tuple[str, ...] = ()  # what was changed of what the policy was told: instruction_shuffle, blind

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

    def save(self, path: Path) -> None:
        """Write a JSON file with every episode's outcome beside what `to_dict` says, atomically."""
        values = {
            **self.to_dict(),
            "purpose": self.purpose,
            "step": self.step,
            "seed": self.seed,
            "probes": list(self.probes),
            "outcomes": [{name: getattr(o, name) for name in _OUTCOME_FIELDS} for o in self.outcomes],
        }
        write_json(path, values)

    @classmethod
    def load(cls, path: Path) -> EvaluationReport:
        """Read what `save` wrote; where films are it does not say. Raises InputError that names the file."""
        try:
            values = read_json(Path(path))
            return cls(
                values["env"],
                values["checkpoint"],
                tuple(EpisodeOutcome(**{name: o[name] for name in _OUTCOME_FIELDS}) for o in values["outcomes"]),
                values["purpose"],
                values["step"],
                values["seed"],
                tuple(values["probes"]),
            )
        except OSError as error:
            raise InputError(f"The evaluation {path} cannot be read: {error.strerror}.") from None
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is not an evaluation's file of outcomes ({error!r}).") from None


def highlights(outcomes: Sequence[EpisodeOutcome]) -> dict[str, EpisodeOutcome]:
    """The best, the worst and the median episode: successes first, then larger rewards, then fewer steps.

    Of equal ones the earlier counts as better. The median of an even number is the better of the two in the middle.
    Of fewer than three episodes those are named that are different ones, in that order.
    """
    ranked = sorted(outcomes, key=lambda o: (not o.success, -o.reward, o.length))
    places = {"best": 0, "worst": len(ranked) - 1, "median": (len(ranked) - 1) // 2}
    chosen: dict[int, str] = {}
    for name, place in places.items():
        chosen.setdefault(place, name)
    return {name: ranked[place] for place, name in chosen.items()}


def _rate(outcomes: Sequence[EpisodeOutcome]) -> float:
    return sum(o.success for o in outcomes) / len(outcomes)
