"""A picture of runs side by side: one panel per metric, and one for success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.errors import InputError
from atlas.runs.comparison import Comparison
from atlas.runs.run_directory import Evaluation, Points, Run
from atlas.system.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
_PANEL = (5.2, 3.4)  # inches
_COLUMNS = (3, 4)  # of panels; whichever leaves fewer places empty
_SMOOTHED_FROM = 30  # points; shorter curves are not smoothed
_WINDOW = 0.1  # of a curve's points: how far back the smoothed one looks


def check_plot_file(file: Path) -> None:
    """Raise InputError if the name does not end in a format that can be drawn."""
    if file.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {file}: the name should end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def save_plot(comparison: Comparison, runs: Sequence[Run], file: Path) -> None:
    """Draw the comparison's metrics over the steps, and success with its intervals. Raises InputError."""
    check_plot_file(file)
    figure = draw(comparison, runs)
    try:
        with atomic_path(file) as partial:
            figure.savefig(partial, format=file.suffix[1:].lower(), dpi=130)
    except OSError as error:
        raise InputError(f"--plot {file}: the file cannot be written ({error.strerror}).") from None


def draw(comparison: Comparison, runs: Sequence[Run]) -> Figure:
    """One panel per metric, and one for success if there are evaluations. Raises InputError with nothing to draw."""
    from matplotlib.figure import Figure

    evaluations = comparison.success.evaluations if comparison.success else {}
    panels = len(comparison.metrics) + bool(evaluations)
    if panels == 0:
        raise InputError("--plot: there is nothing to draw; the runs share no metric. Name some with --metric.")
    columns = panels if panels <= _COLUMNS[0] else min(_COLUMNS, key=lambda number: -panels % number)
    rows = -(-panels // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    colors = dict(zip(comparison.names, _colors(len(runs)), strict=True))
    for axis, (name, metric) in zip(axes, comparison.metrics.items(), strict=False):
        for run in runs:
            if name in run.scalars:
                _draw_curve(axis, run.scalars[name], colors[run.name])
        hint = f" ({metric.better} is better)" if metric.better else ""
        axis.set_title(f"{name}{hint}", fontsize=10)
        axis.set_xlabel("train/step")
        axis.grid(alpha=0.3)
    used = len(comparison.metrics)
    if evaluations:
        _draw_success(axes[used], evaluations, colors)
    for axis in axes[panels:]:
        axis.set_axis_off()
    _draw_legend(figure, colors)
    return figure


def _colors(number: int) -> list[Any]:
    from matplotlib import colormaps

    if number <= 10:
        return [colormaps["tab10"](i) for i in range(number)]
    return [colormaps["turbo"](i / (number - 1)) for i in range(number)]


def _draw_curve(axis: Axes, points: Points, color: Any) -> None:
    """The raw values, faintly, with the smoothed ones over them; a curve with few points only once."""
    steps, values = zip(*sorted(points, key=lambda point: point[0]), strict=True)
    if len(points) < _SMOOTHED_FROM:
        axis.plot(steps, values, color=color, marker="o", markersize=3)
        return
    axis.plot(steps, values, color=color, alpha=0.2, linewidth=1)
    axis.plot(steps, smooth(values), color=color, linewidth=1.6)


def smooth(values: Sequence[float]) -> list[float]:
    """An exponential moving average over about 10% of the values, without the bias to its start; NaN is left out."""
    keep = 1 - 1 / max(1.0, _WINDOW * len(values))
    average, weight = 0.0, 0.0
    smoothed = []
    for value in values:
        if value == value:
            average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(average / weight if weight else float("nan"))
    return smoothed


def _draw_success(axis: Axes, evaluations: Mapping[str, Evaluation], colors: Mapping[str, Any]) -> None:
    names = list(evaluations)
    rates = [evaluations[name].success_rate for name in names]
    bounds = [evaluations[name].interval for name in names]
    errors = [
        [max(0.0, rate - low) for rate, (low, _) in zip(rates, bounds, strict=True)],
        [max(0.0, high - rate) for rate, (_, high) in zip(rates, bounds, strict=True)],
    ]
    places = range(len(names))
    axis.bar(places, rates, yerr=errors, color=[colors[name] for name in names], alpha=0.8, capsize=4)
    axis.set_xticks(places, [f"{evaluations[name].successes}/{evaluations[name].episodes}" for name in names])
    if len(names) > 8:
        axis.tick_params(axis="x", labelrotation=90, labelsize=7)
    axis.set_ylim(0, 1.02)
    purposes = sorted({evaluation.purpose for evaluation in evaluations.values()})
    axis.set_title(f"success, {' and '.join(purposes)} (95% intervals)", fontsize=10)
    axis.grid(alpha=0.3, axis="y")


def _draw_legend(figure: Figure, colors: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=color, linewidth=2, label=name) for name, color in colors.items()]
    longest = max(map(len, colors))
    columns = max(1, min(len(lines), int(figure.get_figwidth() * 11 / (longest + 8))))
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
