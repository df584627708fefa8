"""The diagnosis at the end of a run: whether its data, final rollouts and checkpoint look like a known silent bug."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from atlas.checks.acting.bug_walk import walk
from atlas.checks.acting.diagnosis import diagnose
from atlas.checks.finding import Finding
from atlas.rollout.input_recorder import InputRecorder
from atlas.rollout.success_report import EvaluationReport
from atlas.system.safe_text import cause

logger = logging.getLogger(__name__)


def leave_diagnosis(
    run_dir: Path, of_data: Sequence[Finding], shown: InputRecorder, report: EvaluationReport | None, execute: int
) -> None:
    """Write the run's doctor.json, which its report shows, and warn of what is found. What fails is said, and fails no
    training.

    shown: what this rank's share of the final rollouts has shown the policy; report: of all of them.
    """
    try:
        findings, success = list(of_data), None
        if report is not None and shown.episodes and shown.policy is not None:
            findings += diagnose(shown, shown.policy.processor, report.env, report.outcomes, execute)
        if report is not None:
            success = sum(outcome.success for outcome in report.outcomes), len(report.outcomes)
        found = walk(findings, success)
        found.save(run_dir)
    except Exception as error:  # of any kind: training is over, and its results are there
        logger.warning("The run was not looked through for silent bugs: %s", cause(error).rstrip("."))
        return
    for line in found.problems:
        if line.severe:
            logger.warning("%s: %s", line.bug.title, line.evidence)
