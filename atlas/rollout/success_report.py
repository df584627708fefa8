"""What an evaluation found, in numbers with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from atlas.environments.perturbations.choices import PerturbationChoice
from atlas.errors import InputError
from atlas.rollout.episode_plan import Purpose
from atlas.rollout.proportions import wilson_interval
from atlas.rollout.verdicts.failures import FAILURE_KINDS, FailureKind
from atlas.system.documents import read_json
from atlas.system.files import write_json

# Of the file: those before 2 have no evidence, and those before 3 do not know episodes that collided.
FORMAT = 3
Verdict = Literal["success", "failure", "ended"]
_OUTCOME_FIELDS = ("seed", "instruction", "success", "reward", "length")


@dataclass(frozen=True)
class EpisodeOutcome:
    instruction: str  # that was scored
    seed: int
    success: bool
    reward: float
    length: int  # steps
    video: str | None = None  # the film, where there is one on this machine
    failure: FailureKind | None = None  # how it failed, where a simulator tells
    failed_at: int | None = None  # after how many steps that was to be seen
    judged: bool = True  # whether the world tells success at all; where it does not, `success` means nothing

    @property
    def verdict(self) -> Verdict:
        """How it ended, in a word."""
        if not self.judged:
            return "ended"
        return "success" if self.success else "failure"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a failure's kind and step where there are such, and `judged` where the world tells no success."""
        values = {name: getattr(self, name) for name in _OUTCOME_FIELDS}
        told = {"failure": self.failure, "failed_at": self.failed_at, "judged": None if self.judged else False}
        return values | {name: value for name, value in told.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EpisodeOutcome:
        """Of `to_dict`'s form. Raises KeyError, TypeError or ValueError."""
        failure = values.get("failure")
        if failure not in (None, *FAILURE_KINDS):
            raise ValueError(f"failure is {failure!r}")
        more: dict[str, Any] = {
            "failure": failure,
            "failed_at": values.get("failed_at"),
            "judged": bool(values.get("judged", True)),
        }
        return cls(**{name: values[name] for name in _OUTCOME_FIELDS}, **more)


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
    evidence: dict[str, Any] | None = None  # what it takes to believe it and to repeat it, see evidence.py
    perturbed: Mapping[PerturbationChoice, tuple[EpisodeOutcome, ...]] = field(default_factory=dict)  # the first n each
    tiers: tuple[tuple[str, tuple[str, ...]], ...] = ()  # see EnvironmentSpec

    @property
    def success_rate(self) -> float:
        return _rate(self.outcomes)

    def by_instruction(self) -> dict[str, list[EpisodeOutcome]]:
        """Empty in a world without instructions."""
        groups: dict[str, list[EpisodeOutcome]] = {}
        for outcome in self.outcomes:
            if outcome.instruction:
                groups.setdefault(outcome.instruction, []).append(outcome)
        return dict(sorted(groups.items()))

    def by_tier(self) -> dict[str, list[EpisodeOutcome]]:
        """Of the tiers that have been played; empty where the world has none."""
        groups = {tier: [o for o in self.outcomes if o.instruction in members] for tier, members in self.tiers}
        return {tier: outcomes for tier, outcomes in groups.items() if outcomes}

    @property
    def _graded(self) -> bool:
        """Whether rewards say more than success does."""
        return any(outcome.reward != float(outcome.success) for outcome in self.outcomes)

    def failures(self) -> dict[FailureKind, int] | None:
        """How many of the episodes failed in which way; None where no simulator has told."""
        kinds = [outcome.failure for outcome in self.outcomes if not outcome.success]
        if any(kind is None for kind in kinds):
            return None
        return {kind: kinds.count(kind) for kind in FAILURE_KINDS}

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
        for kind, count in (self.failures() or {}).items():
            values[f"eval/failures/{kind}"] = count / n
        return values

    def to_dict(self) -> dict[str, Any]:
        """The machine-readable form of `atlas eval --json`; `failures` are there where a simulator has told them, and
        `mean_reward` where rewards say more than success, `per_tier` and `mean_of_tiers` where the world has tiers.
        """
        successes = sum(o.success for o in self.outcomes)
        failures = self.failures()
        return {
            "env": self.env,
            "checkpoint": self.checkpoint,
            "episodes": len(self.outcomes),
            "successes": successes,
            "success_rate": self.success_rate,
            "ci95": list(wilson_interval(successes, len(self.outcomes))),
            "mean_episode_length": sum(o.length for o in self.outcomes) / len(self.outcomes),
            "per_instruction": {said: _counted(outcomes) for said, outcomes in self.by_instruction().items()},
            **({} if failures is None else {"failures": failures}),
            **self._tiers_told(),
            **({"mean_reward": self.metrics()["eval/mean_reward"]} if self._graded else {}),
        }

    def _tiers_told(self) -> dict[str, Any]:
        tiers = {tier: _counted(outcomes) for tier, outcomes in self.by_tier().items()}
        if not tiers:
            return {}
        return {"per_tier": tiers, "mean_of_tiers": sum(t["success_rate"] for t in tiers.values()) / len(tiers)}

    def save(self, path: Path, more: Mapping[str, Any] | None = None) -> None:
        """Write a JSON file with every episode's outcome beside what `to_dict` says, atomically. more: further keys."""
        write_json(path, self.to_file() | dict(more or {}))

    def to_file(self) -> dict[str, Any]:
        """What `save` writes."""
        return {
            "format": FORMAT,
            **self.to_dict(),
            "purpose": self.purpose,
            "step": self.step,
            "seed": self.seed,
            "probes": list(self.probes),
            "evidence": self.evidence,
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
            "perturbed_outcomes": [
                {"perturbation": choice.name, "level": choice.level, **outcome.to_dict()}
                for choice, outcomes in self.perturbed.items()
                for outcome in outcomes
            ],
        }

    @classmethod
    def load(cls, path: Path) -> EvaluationReport:
        """Read what `save` wrote; where films are it does not say. Raises InputError that names the file."""
        try:
            values = read_json(Path(path))
            check_format(values, path)
            return cls(
                values["env"],
                values["checkpoint"],
                tuple(EpisodeOutcome.from_dict(outcome) for outcome in values["outcomes"]),
                values["purpose"],
                values["step"],
                values["seed"],
                tuple(values["probes"]),
                values.get("evidence"),
                _read_perturbed(values.get("perturbed_outcomes", ())),
            )
        except OSError as error:
            raise InputError(f"The evaluation {path} cannot be read: {error.strerror}.") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is not an evaluation's file of outcomes ({error!r}).") from None


def _read_perturbed(
    rows: Sequence[dict[str, Any]],
) -> dict[PerturbationChoice, tuple[EpisodeOutcome, ...]]:
    found: dict[PerturbationChoice, tuple[EpisodeOutcome, ...]] = {}
    for row in rows:
        choice = PerturbationChoice(str(row["perturbation"]), int(row["level"]))
        found[choice] = (*found.get(choice, ()), EpisodeOutcome.from_dict(row))
    return found


def check_format(values: Mapping[str, Any], path: Path) -> None:
    """Raises InputError for the outcomes of a newer Atlas."""
    found = values.get("format", 1)
    if found not in range(1, FORMAT + 1):
        raise InputError(
            f"{path} is of version {found} of the files of outcomes, and this Atlas reads versions 1 to {FORMAT}; "
            "update Atlas, or evaluate again with this one."
        )


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


def _counted(outcomes: Sequence[EpisodeOutcome]) -> dict[str, Any]:
    return {
        "episodes": len(outcomes),
        "successes": sum(o.success for o in outcomes),
        "success_rate": _rate(outcomes),
    }


def _rate(outcomes: Sequence[EpisodeOutcome]) -> float:
    return sum(o.success for o in outcomes) / len(outcomes)
