"""The results of an evaluation, in numbers with their uncertainty."""

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

# The file's format: files before 2 have no evidence, and files before 3 do not know collisions.
FORMAT = 3
Verdict = Literal["success", "failure", "ended"]
_OUTCOME_FIELDS = ("seed", "instruction", "success", "reward", "length")


@dataclass(frozen=True)
class EpisodeOutcome:
    instruction: str  # the one that was scored
    seed: int
    success: bool
    reward: float
    length: int  # steps
    video: str | None = None  # the film, where there is one on this machine
    failure: FailureKind | None = None  # how it failed, where a simulator shows it
    failed_at: int | None = None  # the number of steps after which the failure showed
    judged: bool = True  # whether the world reports success; where it does not, `success` means nothing

    @property
    def verdict(self) -> Verdict:
        """The way in which it ended, in a word."""
        if not self.judged:
            return "ended"
        return "success" if self.success else "failure"

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON, with the failure's kind and step where they are known; `judged` where the world reports
        no success."""
        values = {name: getattr(self, name) for name in _OUTCOME_FIELDS}
        more = {"failure": self.failure, "failed_at": self.failed_at, "judged": None if self.judged else False}
        return values | {name: value for name, value in more.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EpisodeOutcome:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError."""
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
    """The outcomes of closed-loop episodes, and their purpose."""

    env: str
    checkpoint: str
    outcomes: tuple[EpisodeOutcome, ...]
    purpose: Purpose = "report"
    step: int | None = None  # the policy's optimizer steps; None where they are not known
    seed: int = 0  # from which the episodes' seeds follow
    probes: tuple[str, ...] = ()  # how the policy's inputs were falsified: instruction_shuffle, blind
    evidence: dict[str, Any] | None = None  # for checking and repeating it, see evidence.py
    perturbed: Mapping[PerturbationChoice, tuple[EpisodeOutcome, ...]] = field(default_factory=dict)  # of the first n
    tiers: tuple[tuple[str, tuple[str, ...]], ...] = ()  # see EnvironmentSpec

    @property
    def success_rate(self) -> float:
        return _rate(self.outcomes)

    def by_instruction(self) -> dict[str, list[EpisodeOutcome]]:
        """The outcomes of each instruction; empty in a world without instructions."""
        groups: dict[str, list[EpisodeOutcome]] = {}
        for outcome in self.outcomes:
            if outcome.instruction:
                groups.setdefault(outcome.instruction, []).append(outcome)
        return dict(sorted(groups.items()))

    def by_tier(self) -> dict[str, list[EpisodeOutcome]]:
        """The outcomes of each tier that was played; empty where the world has no tiers."""
        groups = {tier: [o for o in self.outcomes if o.instruction in members] for tier, members in self.tiers}
        return {tier: outcomes for tier, outcomes in groups.items() if outcomes}

    @property
    def _graded(self) -> bool:
        """Whether rewards say more than success does."""
        return any(outcome.reward != float(outcome.success) for outcome in self.outcomes)

    def failures(self) -> dict[FailureKind, int] | None:
        """The number of episodes for each kind of failure; None where a failure's kind is not known."""
        kinds = [outcome.failure for outcome in self.outcomes if not outcome.success]
        if any(kind is None for kind in kinds):
            return None
        return {kind: kinds.count(kind) for kind in FAILURE_KINDS}

    def metrics(self) -> dict[str, float]:
        """The metrics `eval/*`, without success where the world does not report it."""
        n = len(self.outcomes)
        values = {
            "eval/mean_reward": sum(o.reward for o in self.outcomes) / n,
            "eval/episode_length": sum(o.length for o in self.outcomes) / n,
        }
        if not all(outcome.judged for outcome in self.outcomes):
            return values
        values["eval/success_rate"] = self.success_rate
        for instruction, outcomes in self.by_instruction().items():
            values[f"eval/success_rate/{instruction.replace(' ', '_')}"] = _rate(outcomes)
        for kind, count in (self.failures() or {}).items():
            values[f"eval/failures/{kind}"] = count / n
        return values

    def to_dict(self) -> dict[str, Any]:
        """The machine-readable form of `atlas eval --json`. It has `failures` where their kinds are known,
        `mean_reward` where rewards say more than success, and `per_tier` and `mean_of_tiers` where there are tiers.
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
            "per_instruction": {text: _counted(outcomes) for text, outcomes in self.by_instruction().items()},
            **({} if failures is None else {"failures": failures}),
            **self._tier_entries(),
            **({"mean_reward": self.metrics()["eval/mean_reward"]} if self._graded else {}),
        }

    def _tier_entries(self) -> dict[str, Any]:
        tiers = {tier: _counted(outcomes) for tier, outcomes in self.by_tier().items()}
        if not tiers:
            return {}
        return {"per_tier": tiers, "mean_of_tiers": sum(t["success_rate"] for t in tiers.values()) / len(tiers)}

    def save(self, path: Path, more: Mapping[str, Any] | None = None) -> None:
        """Write `to_dict` and every episode's outcome to a JSON file, atomically. more: further keys."""
        write_json(path, self.to_file() | dict(more or {}))

    def to_file(self) -> dict[str, Any]:
        """The values that `save` writes."""
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
        """Read a file of `save`, which does not hold the films' paths. Raises InputError, which names the file."""
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
    """Raise InputError for a file of a newer Atlas."""
    found = values.get("format", 1)
    if found not in range(1, FORMAT + 1):
        raise InputError(
            f"{path} has format version {found}, but this Atlas reads versions 1 to {FORMAT} of files of outcomes; "
            "update Atlas, or evaluate again with this version."
        )


def highlights(outcomes: Sequence[EpisodeOutcome]) -> dict[str, EpisodeOutcome]:
    """The best, the worst and the median episode: successes first, then larger rewards, then fewer steps.

    Of equal episodes the earlier counts as better. The median of an even number is the better of the two in the middle.
    With fewer than three episodes no episode gets two names: best comes first, then worst, then median.
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
