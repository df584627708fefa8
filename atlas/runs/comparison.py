"""Runs side by side: where their configs differ, what each metric reached, and which did best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from atlas.config.assignments import dotted
from atlas.config.tracking_sections import rises
from atlas.errors import InputError, did_you_mean
from atlas.runs.paired_success import SuccessComparison, compare_success
from atlas.runs.run_directory import Points, Run

Better = Literal["lower", "higher"]

SUCCESS = "eval/success_rate"
DEFAULT_METRICS = (
    "val/loss",
    "val/pose_l2_error",
    "val/position_error_mm",
    "val/joint_error_deg",
    "val/joint_error_percent",
    "val/gripper_accuracy",
    SUCCESS,
    "perf/samples_per_second",
)
# By a part of the name, so that `val/<task>/position_error_mm` and the losses of a head of one's own are known too.
_FASTER = ("samples_per_second", "mfu")
_LOWER = ("loss", "error", "seconds", "timer/")
_DIFFERENT_ANYWAY = {"run_name", "output_dir", "wandb.name"}


def better_direction(metric: str) -> Better | None:
    """Whether higher or lower values of a metric are better; None where its name does not say so."""
    if rises(metric) or any(part in metric for part in _FASTER):
        return "higher"
    return "lower" if any(part in metric for part in _LOWER) else None


@dataclass(frozen=True)
class Reached:
    """The value that a run has reached in one metric."""

    latest: float
    latest_step: int
    best: float | None  # None where no direction is known to be better, or no value is a number
    best_step: int | None


@dataclass(frozen=True)
class Metric:
    better: Better | None
    runs: dict[str, Reached | None]  # by the run's name; None for a run that has not logged it


@dataclass(frozen=True)
class Ranking:
    metric: str
    better: Better
    final: bool  # the values are of final evaluations; else the best ones of the curve
    runs: list[tuple[str, float | None]]  # best first; None, at the end, for a run without a value


@dataclass(frozen=True)
class Comparison:
    names: list[str]
    config: dict[str, dict[str, Any]]  # {key: {run: value}} where values differ; a run without the key is left out
    metrics: dict[str, Metric]
    success: SuccessComparison | None  # None where no run has been evaluated
    ranking: Ranking | None  # None where there is nothing to rank by

    def to_dict(self) -> dict[str, Any]:
        """The machine-readable form of `atlas runs compare --json`."""
        ranking = self.ranking
        return {
            "runs": self.names,
            "config": self.config,
            "metrics": {
                name: {
                    "better": metric.better,
                    "runs": {run: reached and asdict(reached) for run, reached in metric.runs.items()},
                }
                for name, metric in self.metrics.items()
            },
            "success": self.success and self.success.to_dict(),
            "ranking": ranking
            and {
                "metric": ranking.metric,
                "better": ranking.better,
                "final": ranking.final,
                "runs": [{"run": name, "value": value} for name, value in ranking.runs],
            },
        }


def compare_runs(
    runs: Sequence[Run],
    metrics: Sequence[str] = (),
    rank_by: tuple[str, Better] | None = None,
    paired: bool = False,
) -> Comparison:
    """Put runs side by side. Their names must be distinct.

    metrics: default: those of DEFAULT_METRICS that all runs have. rank_by: a metric and which values of it are
    better; default: the success of the final evaluations where all runs have one, else the first of the metrics.
    Raises InputError if a run holds nothing to compare, if no run has a requested metric, or, with `paired`, if the
    runs have not played the same episodes.
    """
    assert len({run.name for run in runs}) == len(runs) > 0
    for run in runs:
        if not run.scalars and not run.evaluations:
            raise InputError(f"The run {run.path} has nothing to compare: no metric has been logged.")
    compared = {name: _metric(name, runs) for name in metrics or _metrics_of_all(runs)}
    success = compare_success(runs, paired)
    return Comparison(
        [run.name for run in runs],
        differing_settings(runs),
        compared,
        success,
        _rank(runs, success, rank_by or _default_ranking(compared, success, runs)),
    )


# ---- configs ---------------------------------------------------------------------------------------------


def differing_settings(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """{dotted key: {run: value}} of the keys that differ among the runs that have a config, names of runs left out."""
    flat = {run.name: dotted(run.config) for run in runs if run.config}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    found = {}
    for key in keys:
        values = {name: settings[key] for name, settings in flat.items() if key in settings}
        same = len(values) == len(flat) and all(value == next(iter(values.values())) for value in values.values())
        if not same and key not in _DIFFERENT_ANYWAY:
            found[key] = values
    return found


# ---- metrics ---------------------------------------------------------------------------------------------


def _metrics_of_all(runs: Sequence[Run]) -> list[str]:
    logged = [run for run in runs if run.scalars]
    return [name for name in DEFAULT_METRICS if logged and all(name in run.scalars for run in logged)]


def _metric(name: str, runs: Sequence[Run]) -> Metric:
    if not any(name in run.scalars for run in runs):
        known = sorted({tag for run in runs for tag in run.scalars})
        raise InputError(
            f"--metric {name}: none of the runs has logged it.{did_you_mean(name, known)} There are, among others: "
            f"{', '.join([tag for tag in known if tag.startswith(('val/', 'eval/'))][:8] or known[:8])}."
        )
    better = better_direction(name)
    return Metric(
        better, {run.name: _reached(run.scalars[name], better) if name in run.scalars else None for run in runs}
    )


def _reached(points: Points, better: Better | None) -> Reached:
    best = _best(points, better)
    return Reached(points[-1][1], points[-1][0], best[1] if best else None, best[0] if best else None)


def _best(points: Points, better: Better | None) -> tuple[int, float] | None:
    """The first of the best points."""
    numbers = [point for point in points if not math.isnan(point[1])]
    if better is None or not numbers:
        return None
    return (max if better == "higher" else min)(numbers, key=lambda point: point[1])


# ---- ranking ---------------------------------------------------------------------------------------------


def _default_ranking(
    metrics: dict[str, Metric], success: SuccessComparison | None, runs: Sequence[Run]
) -> tuple[str, Better] | None:
    if success is not None and len(_final_rates(success)) == len(runs):
        return SUCCESS, "higher"
    return next(((name, metric.better) for name, metric in metrics.items() if metric.better is not None), None)


def _rank(runs: Sequence[Run], success: SuccessComparison | None, rank_by: tuple[str, Better] | None) -> Ranking | None:
    if rank_by is None:
        return None
    metric, better = rank_by
    rates = _final_rates(success) if success is not None and metric == SUCCESS else {}
    final = len(rates) == len(runs)
    values: dict[str, float | None] = {}
    for run in runs:
        best = _best(run.scalars.get(metric, ()), better)
        values[run.name] = rates[run.name] if final else best[1] if best else None
    sign = -1 if better == "higher" else 1
    order = sorted(values.items(), key=lambda item: math.inf if item[1] is None else sign * item[1])
    return Ranking(metric, better, final, order)


def _final_rates(success: SuccessComparison) -> dict[str, float]:
    """Success in evaluations that chose no checkpoint, whose best value is not the luck of the draw."""
    return {name: found.success_rate for name, found in success.evaluations.items() if found.purpose != "selection"}
