"""Whether a result holds: its evaluation is repeated by its own protocol, and compared episode by episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atlas.errors import InputError
from atlas.registry import resolve_policy
from atlas.rollout.evaluation import evaluate_checkpoint
from atlas.rollout.proportions import mcnemar_p
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport, check_format
from atlas.rollout.verdicts.evidence import Protocol, policy_hash
from atlas.system.documents import read_json
from atlas.tracking.provenance import provenance

Holds = Literal["exactly", "within chance", "no"]
_LEVEL = 0.05
Key = tuple[str, int, str, int]  # perturbation, level, instruction, seed; "" and 0 of an episode as it is


@dataclass(frozen=True)
class Claim:
    """The claim of a file of results, and what it takes to repeat it."""

    file: Path
    checkpoint: str
    protocol: Protocol
    policy_sha256: str
    software: Mapping[str, Any]
    outcomes: Mapping[Key, EpisodeOutcome]


@dataclass(frozen=True)
class Reproduction:
    """A claim beside what came out this time."""

    claim: Claim
    again: EvaluationReport

    @property
    def differing(self) -> list[Key]:
        """The episodes that ended otherwise than they did: in success or, where the world does not tell it, in their
        reward."""
        now = _by_key(self.again)
        return [key for key, was in self.claim.outcomes.items() if _score(was) != _score(now[key])]

    @property
    def holds(self) -> Holds:
        """exactly: each episode succeeds or fails as it did (or has the reward that it had); within chance: others do,
        as many either way as chance may have it (McNemar, 5%)."""
        now = _by_key(self.again)
        gone = sum(_score(self.claim.outcomes[key]) > _score(now[key]) for key in self.differing)
        if not self.differing:
            return "exactly"
        return "within chance" if mcnemar_p(gone, len(self.differing) - gone) >= _LEVEL else "no"

    def to_dict(self) -> dict[str, Any]:
        was = sum(outcome.success for outcome in self.claim.outcomes.values())
        now = _by_key(self.again)
        return {
            "file": str(self.claim.file),
            "holds": self.holds,
            "episodes": len(self.claim.outcomes),
            "successes_then": was,
            "successes_now": sum(now[key].success for key in self.claim.outcomes),
            "same_length": sum(now[key].length == was.length for key, was in self.claim.outcomes.items()),
            "differing": [
                {"perturbation": name or None, "level": level or None, "instruction": said, "seed": seed}
                for name, level, said, seed in self.differing
            ],
            "software_changed": self.changed,
        }

    @property
    def changed(self) -> dict[str, list[Any]]:
        """{package: [version then, version now]} of what is another one now."""
        then, now = self.claim.software.get("packages", {}), provenance()["packages"]
        return {name: [then.get(name), now.get(name)] for name in {**then, **now} if then.get(name) != now.get(name)}


def reproduce(file: Path, checkpoint: str | Path | None = None, workers: int | None = None) -> Reproduction:
    """Repeat the evaluation that a file of outcomes, or a run's results.json, tells of.

    checkpoint: where the policy lies now; None: where it did. Raises InputError for another file, one of another
    version, one without evidence, and for another policy.
    """
    claim = read_claim(file)
    where = checkpoint or claim.checkpoint
    found = policy_hash(resolve_policy(where))
    if found != claim.policy_sha256:
        raise InputError(
            f"The policy at {where} is not the one that {file} tells of: its SHA-256 is {found[:12]}…, and the "
            f"result's {claim.policy_sha256[:12]}…. Name the right one with --checkpoint."
        )
    protocol = claim.protocol
    again = evaluate_checkpoint(
        where,
        protocol.env,
        protocol.episodes,
        protocol.seed,
        protocol.execute,
        protocol.ensemble,
        protocol.instruction_shuffle,
        protocol.blind,
        workers=workers,
        perturb=protocol.perturb,
        perturb_episodes=protocol.perturb_episodes,
        purpose=protocol.purpose,
        delay_ms=protocol.delay_ms,
        blend=protocol.blend,
        cameras=protocol.cameras,
    )
    missing = claim.outcomes.keys() - _by_key(again).keys()
    if missing:
        raise InputError(f"{file} has episodes that its own protocol does not: {sorted(missing)[0]}; it is damaged.")
    return Reproduction(claim, again)


def read_claim(file: Path) -> Claim:
    """Raises InputError, see `reproduce`."""
    try:
        values = read_json(file)
        if not isinstance(values, dict):
            raise ValueError("no object")
        check_format(values, file)
        evidence = values.get("evidence")
        if evidence is None:
            raise InputError(
                f"{file} does not say how it came about, as files of before version 2 do not; evaluate again with "
                "`atlas eval --out FILE`."
            )
        outcomes = {_key(row): EpisodeOutcome.from_dict(row) for row in values["outcomes"]}
        outcomes |= {_key(row): EpisodeOutcome.from_dict(row) for row in values.get("perturbed_outcomes", ())}
        return Claim(
            file,
            str(values["checkpoint"] if "checkpoint" in values else values["best_checkpoint"]),
            Protocol.from_dict(evidence["protocol"]),
            str(evidence["policy_sha256"]),
            evidence["software"],
            outcomes,
        )
    except OSError as error:
        raise InputError(f"The results {file} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{file} is no file of results ({error!r}). Give what `atlas eval --out FILE` writes, or a run's "
            "results.json."
        ) from None


def _key(row: Mapping[str, Any]) -> Key:
    return str(row.get("perturbation", "")), int(row.get("level", 0)), str(row["instruction"]), int(row["seed"])


def _score(outcome: EpisodeOutcome) -> float:
    """The score that an episode is judged by. Rewards to four digits: sums of floats differ in the last ones."""
    return float(outcome.success) if outcome.judged else float(f"{outcome.reward:.4g}")


def _by_key(report: EvaluationReport) -> dict[Key, EpisodeOutcome]:
    found: dict[Key, EpisodeOutcome] = {("", 0, o.instruction, o.seed): o for o in report.outcomes}
    for choice, outcomes in report.perturbed.items():
        found |= {(choice.name, choice.level, o.instruction, o.seed): o for o in outcomes}
    return found
