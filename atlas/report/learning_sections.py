"""The sections on training: curves, errors by task, and the differences between runs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from atlas.report.curve_drawing import COLOURS, Chart, Line, draw_chart, number
from atlas.report.markup import Html, Part, fold, section, table, tag
from atlas.report.run_facts import RunFacts
from atlas.runs.comparison import Reached, compare_runs
from atlas.runs.paired_success import Pair
from atlas.runs.run_directory import Run

_CHARTS: tuple[tuple[str, str, tuple[str, ...], str, tuple[float, float] | None], ...] = (
    ("Success", "in rollouts that choose the best checkpoint", ("eval/success_rate",), "", (0.0, 1.0)),
    ("Loss", "dashed: training", ("train/loss", "val/loss"), "", None),
    ("Position error", "mm, lower is better", ("val/position_error_mm",), "mm", None),
    ("Rotation error", "degrees, lower is better", ("val/rotation_error_deg",), "°", None),
    ("Joint error", "degrees, lower is better", ("val/joint_error_deg",), "°", None),
    ("Joint error", "percent of the range, lower is better", ("val/joint_error_percent",), "%", None),
    ("Gripper accuracy", "higher is better", ("val/gripper_accuracy",), "", None),
)
_MORE_CHARTS: tuple[tuple[str, str, tuple[str, ...], str, tuple[float, float] | None], ...] = (
    ("Pose error", "L2, in units of actions", ("val/pose_l2_error",), "", None),
    ("Gripper loss", "dashed: training", ("train/gripper_loss", "val/gripper_loss"), "", None),
    ("Learning rate", "", ("train/lr",), "", None),
    ("Gradient norm", "before clipping", ("train/grad_norm",), "", None),
    ("Episode length", "steps in rollouts", ("eval/episode_length",), "steps", None),
    ("Samples per second", "higher is better", ("perf/samples_per_second",), "", None),
)
_BY_REWARD: tuple[tuple[str, str, tuple[str, ...], str, tuple[float, float] | None], ...] = (
    ("Reward", "in rollouts that choose the best policy", ("eval/mean_reward",), "", None),
    ("Reward while learning", "of the last ten episodes, by steps played", ("actor/avg_episode_reward_10",), "", None),
)
_MORE_BY_REWARD: tuple[tuple[str, str, tuple[str, ...], str, tuple[float, float] | None], ...] = (
    ("Loss of the critics", "over updates", ("sac/critic_loss",), "", None),
    ("Temperature", "over updates", ("sac/temperature",), "", None),
    ("Entropy", "over updates", ("sac/entropy", "ppo/entropy", "grpo/entropy"), "", None),
    ("Divergence", "of a round's policy from the one before", ("ppo/kl", "grpo/kl"), "", None),
    ("Divergence from the start", "over updates", ("ppo/start_kl", "grpo/start_kl"), "", None),
    ("Length while learning", "of the last ten episodes", ("actor/avg_episode_length_10",), "steps", None),
)
_ERROR_COLUMNS = {
    "position_error_mm": "position (mm)",
    "rotation_error_deg": "rotation (°)",
    "joint_error_deg": "joints (°)",
    "joint_error_percent": "joints (%)",
    "gripper_accuracy": "gripper accuracy",
    "pose_l1_error": "pose L1 (units of actions)",
}


def curves(runs: Sequence[RunFacts]) -> Html | None:
    """A chart per metric, with a line per run."""
    acted = any("actor/total_steps" in facts.run.scalars for facts in runs)
    charts, further = (_BY_REWARD, _MORE_BY_REWARD) if acted else ((), ())
    first = [chart for spec in (*_CHARTS, *charts) if (chart := _chart(runs, *spec)) is not None]
    more = [chart for spec in (*further, *_MORE_CHARTS) if (chart := _chart(runs, *spec)) is not None]
    if not first and not more:
        return None
    rest = fold(f"{len(more)} more curves", tag("div", more, class_="charts")) if more else None
    return section("curves", "Curves", tag("div", first, class_="charts"), rest)


def _chart(
    runs: Sequence[RunFacts],
    title: str,
    hint: str,
    metrics: tuple[str, ...],
    unit: str,
    limits: tuple[float, float] | None,
) -> Html | None:
    lines = [
        Line(_label(facts.name, metric, len(runs), len(metrics)), i % COLOURS, facts.run.scalars[metric], _kind(metric))
        for i, facts in enumerate(runs)
        for metric in metrics
        if metric in facts.run.scalars
    ]
    return draw_chart(Chart(title, hint, lines, unit, limits)) if lines else None


def _kind(metric: str) -> str:
    return "train" if metric.startswith("train/") and metric.endswith("loss") else ""


def _label(run: str, metric: str, runs: int, metrics: int) -> str:
    if runs == 1:
        return metric
    return f"{run}, {metric.split('/')[0]}" if metrics > 1 else run


# ---- errors --------------------------------------------------------------------------------------------------


def errors_by_task(runs: Sequence[RunFacts]) -> Html | None:
    """The last validation's errors in physical units, for each task and run."""
    measured = [name for name in _ERROR_COLUMNS if any(f"val/{name}" in facts.run.scalars for facts in runs)]
    if not measured:
        return None
    if len(measured) > 1 and "position_error_mm" in measured:
        measured = [name for name in measured if name != "pose_l1_error"]
    rows: list[list[Part]] = []
    for task in _tasks(runs, measured):
        for i, facts in enumerate(runs):
            values = [facts.run.scalars.get(f"val/{task}/{name}" if task else f"val/{name}") for name in measured]
            if any(values):
                label = (task or "all tasks").replace("_", " ")
                which = [tag("i", class_=f"swatch c{i % COLOURS}"), facts.name] if len(runs) > 1 else None
                rows.append([label, *([which] if which else []), *(_value(points) for points in values)])
    columns = ["task", *(["run"] if len(runs) > 1 else []), *(_ERROR_COLUMNS[name] for name in measured)]
    note = "Distances of predicted from recorded actions, per step, on episodes not used in training, at the end."
    return section("errors", "Validation errors by task", table(columns, rows), note=note)


def _tasks(runs: Sequence[RunFacts], measured: Sequence[str]) -> list[str]:
    """The parts of names between `val/` and the error: tasks and, for two arms, arms. First comes '', for all tasks."""
    pattern = re.compile(rf"val/(?:(?P<task>.+)/)?(?:{'|'.join(map(re.escape, measured))})")
    found = {
        match["task"] or "": None for facts in runs for tag_ in facts.run.scalars if (match := pattern.fullmatch(tag_))
    }
    return sorted(found)


def _value(points: Sequence[tuple[int, float]] | None) -> str:
    return "-" if not points else number(points[-1][1])


# ---- several runs --------------------------------------------------------------------------------------------


def side_by_side(runs: Sequence[RunFacts]) -> Html | None:
    """Several runs compared: whether their success differs, what each metric reached, and which settings differ."""
    read: list[Run] = [facts.run for facts in runs]
    if len(runs) < 2 or any(not run.scalars and not run.evaluations for run in read):
        return None
    comparison = compare_runs(read)
    parts: list[Part] = []
    if comparison.success is not None:
        lines = [_in_words(pair) for pair in comparison.success.pairs]
        parts.append(tag("ul", (tag("li", line) for line in [*lines, *comparison.success.notes])))
    names = comparison.names
    if comparison.metrics:
        rows: list[list[Part]] = [
            [name, *(_reached(comparison.metrics[name].runs[run]) for run in names)] for name in comparison.metrics
        ]
        parts.append(table(["metric: latest (best)", *names], rows))
    if comparison.config:
        settings: list[list[Part]] = [
            [tag("code", key), *(tag("code", setting(values[run])) if run in values else "-" for run in names)]
            for key, values in comparison.config.items()
        ]
        parts.append(
            fold(f"{len(settings)} settings differ", table(["setting", *names], settings), opened=len(settings) < 12)
        )
    return section("side-by-side", "Side by side", parts)


def _in_words(pair: Pair) -> str:
    low, high = (f"{100 * bound:+.1f}" for bound in pair.interval)
    difference = f"{100 * pair.difference:+.1f} points, 95% interval {low} to {high}, p = {pair.p:.2g}"
    return f"{pair.first} and {pair.second}: {pair.verdict} ({difference})."


def _reached(reached: Reached | None) -> str:
    if reached is None:
        return "-"
    return number(reached.latest) + ("" if reached.best is None else f" ({number(reached.best)})")


def setting(value: object) -> str:
    """A setting's value in YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
