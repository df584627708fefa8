"""A picture of success by perturbation and level: a bar a level, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atlas.environments.perturbations.perturbation import LEVELS
from atlas.rollout.proportions import wilson_interval
from atlas.rollout.verdicts.robustness import RobustnessReport
from atlas.system.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 2  # of perturbations
_ROW_INCHES, _WIDTH_INCHES, _HEAD_INCHES = 0.62, 5.0, 0.9
_BARS = ("#c6dbef", "#9ecae1", "#6baed6", "#3182bd", "#08519c")  # light to dark, a level each
_PLAIN = "#404040"


def draw_robustness(report: RobustnessReport) -> Figure:
    """Each perturbation's bars, one a level, beside the rate of the same episodes without any, as a line."""
    from matplotlib.figure import Figure

    names = report.names
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(
        figsize=(_WIDTH_INCHES * _COLUMNS, _HEAD_INCHES + _ROW_INCHES * rows), dpi=100, layout="constrained"
    )
    plain = sum(outcome.success for outcome in report.plain) / len(report.plain)
    figure.suptitle(
        f"Success in '{report.env}' by perturbation, levels 1 to 5 (95% intervals, {len(report.plain)} episodes each); "
        f"line: unperturbed, {plain:.0%}",
        fontsize=9,
    )
    columns = [names[:rows], names[rows:]]
    for axis, shown in zip(figure.subplots(1, _COLUMNS, squeeze=False)[0], columns, strict=True):
        for place, name in enumerate(shown):
            for level, outcomes in report.levels_of(name).items():
                successes, n = sum(outcome.success for outcome in outcomes), len(outcomes)
                low, high = wilson_interval(successes, n)
                y, rate = place + (level - 3) * 0.16, successes / n
                axis.barh(y, rate, height=0.15, color=_BARS[level - 1], label=f"level {level}" if not place else None)
                axis.plot([low, high], [y, y], color="#555555", linewidth=0.7)
        axis.axvline(plain, color=_PLAIN, linewidth=1.0, linestyle="--")
        axis.set_xlim(0, 1)
        axis.set_ylim(rows - 0.5, -0.5)
        axis.set_yticks(range(len(shown)), shown, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    _label_levels(figure)
    return figure


def save_robustness(report: RobustnessReport, file: Path) -> None:
    """Draw into a file of the format that its name ends in. Raises OSError."""
    figure = draw_robustness(report)
    with atomic_path(file) as partial:
        figure.savefig(partial, format=file.suffix[1:].lower(), dpi=130)


def _label_levels(figure: Figure) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=_BARS[level - 1], label=f"level {level}") for level in LEVELS]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(LEVELS), fontsize=8, frameon=False)
