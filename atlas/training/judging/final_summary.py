"""The table at the end of a run: what was reached, and where to look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlas.report import REPORT
from atlas.rollout.proportions import wilson_interval
from atlas.rollout.success_report import EvaluationReport
from atlas.rollout.verdicts.failures import FAILURE_WORDS
from atlas.rollout.verdicts.robustness import ROW_TITLES
from atlas.rollout.verdicts.twins import TWIN_WORDS
from atlas.training.judging.final_evaluation import FinalEvaluation

_ERRORS = {
    "val/position_error_mm": "position error (mm)",
    "val/rotation_error_deg": "rotation error (deg)",
    "val/joint_error_deg": "joint error (deg)",
    "val/joint_error_percent": "joint error (%)",
    "val/pose_l1_error": "pose L1 error (action units)",
    "val/pose_l2_error": "pose L2 error (action units)",
    "val/gripper_accuracy": "gripper accuracy",
}


def final_summary(run_dir: Path, best_checkpoint: Path, metrics: dict[str, float], final: FinalEvaluation) -> str:
    """A few lines for people."""
    report = final.report
    errors = [(label, f"{metrics[name]:.3f}") for name, label in _ERRORS.items() if name in metrics]
    lines = ["Done.", "", "Validation, at the last step", *_table(errors)]
    if report is not None:
        found = report.to_dict()
        rows = [
            (name, f"{each['successes']}/{each['episodes']}", _percent(each))
            for name, each in found["per_instruction"].items()
        ]
        rows.append(("all instructions", f"{found['successes']}/{found['episodes']}", _percent(found)))
        for name, probe in final.probes.items():
            told = probe.to_dict()
            rows.append((TWIN_WORDS[name], f"{told['successes']}/{told['episodes']}", _percent(told)))
        lines += ["", f"Success in '{report.env}' (best checkpoint, episodes never used before)", *_table(rows)]
        lines += _failed(report)
    if final.robustness is not None:
        episodes = len(final.robustness.plain)
        lines += [
            "",
            f"Success under perturbations, {episodes} episodes a level",
            *_table([ROW_TITLES, *final.robustness.rows()]),
        ]
    lines += ["", f"Best checkpoint: {best_checkpoint}"]
    if report is not None and any(outcome.video for outcome in report.outcomes):
        lines.append(f"Videos:          {run_dir / 'videos'}")
    lines.append(f"Report:          {run_dir / REPORT}")
    lines.append(f"Dashboard:       tensorboard --logdir {run_dir.parent}")
    return "\n".join(lines)


def _failed(report: EvaluationReport) -> list[str]:
    """Say in one line how the episodes failed that did."""
    counts = {kind: count for kind, count in (report.failures() or {}).items() if count}
    words = "; ".join(f"{count} {FAILURE_WORDS[kind]}" for kind, count in counts.items())
    return [f"  how it failed: {words}"] if words else []


def _percent(found: dict[str, Any]) -> str:
    low, high = wilson_interval(found["successes"], found["episodes"])
    return f"{100 * found['success_rate']:.0f}%  (95% interval {100 * low:.0f} to {100 * high:.0f}%)"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
