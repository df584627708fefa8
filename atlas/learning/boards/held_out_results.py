"""The evidence for the results of a run of learning, the probes of the kept policy, and the report at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from atlas.config import EvaluationConfig
from atlas.registry import resolve_policy
from atlas.report import write_report
from atlas.rollout.actor import Actor
from atlas.rollout.chunk_timeline import Blend
from atlas.rollout.success_report import EvaluationReport
from atlas.rollout.verdicts.evidence import Protocol, gather_evidence
from atlas.rollout.verdicts.twins import TWINS, Play, play_twin
from atlas.runs.run_directory import EVALUATIONS, RESULTS
from atlas.system.files import write_json
from atlas.system.safe_text import cause
from atlas.training.judging.final_evaluation import FinalEvaluation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HowPlayed:
    """How actors execute chunks in the evaluations of a run."""

    execute: int
    ensemble: float | None = None
    delay_ms: float = 0.0
    blend: Blend = None
    dataset: str | None = None  # the fingerprint of the data that the policy has imitated

    @classmethod
    def configured(cls, config: EvaluationConfig) -> HowPlayed:
        """The way of actors made by a config's settings."""
        return cls(config.execute, config.ensemble, config.delay_ms, config.blend)

    def proven(self, report: EvaluationReport, policy: Path | str) -> EvaluationReport:
        """A report with the evidence to verify and to repeat it. policy: where it is saved. Raises InputError."""
        protocol = Protocol(
            report.env,
            len(report.outcomes),
            report.seed,
            report.purpose,
            self.execute,
            self.ensemble,
            instruction_shuffle="instruction_shuffle" in report.probes,
            blind="blind" in report.probes,
            delay_ms=self.delay_ms,
            blend=self.blend,
        )
        evidence = gather_evidence(resolve_policy(policy), protocol, self.dataset)
        return replace(report, checkpoint=str(policy), evidence=evidence)


def twins_of(
    folder: Path,
    kept: EvaluationReport,
    actor: Actor,
    few: int,
    play: Play,
    how: HowPlayed,
    first: Callable[[bool], bool] = bool,
    writes: bool = True,
) -> dict[str, EvaluationReport]:
    """Evaluate the kept policy with another task's instruction and with black images, once each; the outcomes are saved
    in the run's folder.

    first: gives all processes the first one's value. writes: whether this process is the first.
    """
    twins: dict[str, EvaluationReport] = {}
    for probe in TWINS:
        file = folder / EVALUATIONS / f"{probe}.json"
        if first(file.exists()):
            twins[probe] = EvaluationReport.load(file)
        elif (twin := play_twin(probe, kept, actor, few, play)) is not None:
            twins[probe] = how.proven(twin, kept.checkpoint) if writes else twin
            if writes:
                twins[probe].save(file)
    return twins


def write_results(
    folder: Path, summary: Mapping[str, Any], kept: EvaluationReport, twins: Mapping[str, EvaluationReport]
) -> None:
    """Write results.json: the output of `--json`, and a training run's results for the kept policy."""
    write_json(
        folder / RESULTS, {**summary, "best_checkpoint": kept.checkpoint, **FinalEvaluation(kept, twins).to_dict()}
    )


def leave_page(held: ExitStack, folder: Path) -> None:
    """Write report.html when the stack is left without an error and there are results. Call this before trackers are
    opened, so that everything they log is on disk by then. A failure is logged and does not fail the run."""

    def leave(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None or not (folder / RESULTS).exists():
            return
        try:
            write_report(folder)
        except Exception as failure:  # of any kind: the report reads everything in the run's folder
            logger.warning("The report could not be written: %s", cause(failure).rstrip("."))

    held.push(leave)
