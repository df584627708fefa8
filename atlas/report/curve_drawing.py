"""Curves over the steps as SVG, which takes its colours from the page: light, dark or in print."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from atlas.drawing.comparison_plot import smooth
from atlas.report.markup import Html, tag
from atlas.runs.run_directory import Points

COLOURS = 8  # the page's colours for runs; further runs reuse them
_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 26  # margins of the plot
_MOST_POINTS = 240  # per line
_SMOOTHED_FROM = 80  # points
_SPREAD = 12  # ratio of the largest to the smallest value above which the axis is logarithmic, if all are above 0
_LEAST_SPREAD = 0.1  # of the largest value: the axis spans at least this, so that small changes look small
_TICKS = 4
_DASHES = {"train": "5 4"}


@dataclass(frozen=True)
class Line:
    """label: the run and the metric; colour: the run's number; kind: only `train` is drawn dashed."""

    label: str
    colour: int
    points: Points
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    title: str
    hint: str  # such as "lower is better"
    lines: Sequence[Line]
    unit: str = ""
    limits: tuple[float, float] | None = None  # of the axis; None: those of the values


def draw_chart(chart: Chart) -> Html | None:
    """The chart with its title and legend; None where it has no finite value."""
    lines = [(line, kept) for line in chart.lines if (kept := _finite(line.points))]
    if not lines:
        return None
    scale = _Scale.of([point for _, points in lines for point in points], chart.limits)
    drawn = [part for line, points in lines for part in _draw_line(line, points, scale)]
    svg = tag(
        "svg",
        _axes(scale),
        drawn,
        tag("line", class_="cursor", y1=_TOP, y2=_HEIGHT - _BOTTOM),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{chart.title} over the steps",
        data_lines=_values(lines, scale),
        data_unit=chart.unit,
    )
    caption = tag("figcaption", tag("b", chart.title), " ", tag("small", chart.hint))
    legend = [
        tag("span", tag("i", class_=f"swatch c{line.colour % COLOURS} {line.kind}".strip()), line.label)
        for line, _ in lines
    ]
    return tag("figure", caption, svg, tag("div", legend, class_="legend"), class_="chart")


# ---- scales --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    last_step: float
    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, points: Points, limits: tuple[float, float] | None) -> _Scale:
        last = max(step for step, _ in points) or 1
        low, high = limits or (min(value for _, value in points), max(value for _, value in points))
        logarithmic = limits is None and low > 0 and high / low > _SPREAD
        if limits is None:
            least = _LEAST_SPREAD * (max(abs(low), abs(high)) or 1)
            room = 0.06 * (high - low) + max(0.0, least - (high - low)) / 2
            if not logarithmic:
                low, high = (max(0.0, low - room) if low >= 0 else low - room), high + room
        return cls(last, low, high, logarithmic)

    def x(self, step: float) -> float:
        return round(_LEFT + step / self.last_step * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)
        value = math.log(value) if self.logarithmic else value
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 2 else (1,)
            found = [m * 10.0**power for power in range(first, last + 1) for m in steps]
            return [tick for tick in found if self.low <= tick <= self.high]
        return _round_numbers(self.low, self.high)


def _round_numbers(low: float, high: float) -> list[float]:
    """About 4 round numbers, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number as short text."""
    if value != value or math.isinf(value):
        return "not a number"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


# ---- drawing -------------------------------------------------------------------------------------------------


def _axes(scale: _Scale) -> list[Html]:
    parts = []
    for tick in scale.ticks():
        y = scale.y(tick)
        parts.append(tag("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y))
        parts.append(tag("text", number(tick), x=_LEFT - 6, y=y + 3.5, text_anchor="end"))
    for tick in _round_numbers(0, scale.last_step):
        anchor = "end" if scale.x(tick) > _WIDTH - 30 else "middle"
        parts.append(tag("text", number(tick), x=scale.x(tick), y=_HEIGHT - 8, text_anchor=anchor))
    return parts


def _draw_line(line: Line, points: Points, scale: _Scale) -> list[Html]:
    colour, dashes = f"c{line.colour % COLOURS}", _DASHES.get(line.kind)
    if len(points) < _SMOOTHED_FROM:
        dots = [tag("circle", class_=colour, cx=scale.x(s), cy=scale.y(v), r=2.6) for s, v in points]
        return [_path(points, scale, class_=colour, stroke_dasharray=dashes), *dots]
    smoothed = list(zip((step for step, _ in points), smooth([value for _, value in points]), strict=True))
    return [
        _path(_thinned(points), scale, class_=f"{colour} faint"),
        _path(_thinned(smoothed), scale, class_=colour, stroke_dasharray=dashes),
    ]


def _path(points: Points, scale: _Scale, **attributes: str | None) -> Html:
    return tag("path", d="M" + "L".join(f"{scale.x(s):g},{scale.y(v):g}" for s, v in points), **attributes)


def _values(lines: Sequence[tuple[Line, Points]], scale: _Scale) -> str:
    """The values that the page shows beside the cursor: each line's label, its places along x, its steps and values."""
    shown = []
    for line, points in lines:
        kept = _thinned(points)
        xs = [scale.x(step) for step, _ in kept]
        shown.append([line.label, xs, [step for step, _ in kept], [number(value) for _, value in kept]])
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def _finite(points: Points) -> list[tuple[int, float]]:
    return sorted((point for point in points if math.isfinite(point[1])), key=lambda point: point[0])


def _thinned(points: Points) -> Points:
    """Return at most _MOST_POINTS points, evenly spaced, and the last one."""
    every = -(-len(points) // _MOST_POINTS)
    return points if every <= 1 else [*points[::every], *([] if (len(points) - 1) % every == 0 else points[-1:])]
