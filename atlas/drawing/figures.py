"""Pictures of actions and features: arrays in, uint8 [H, W, 3] out. Nothing here knows about policies or runs.

Recorded values are dark and predicted ones orange. matplotlib draws everything with axes, through its object interface;
a pair of axes takes it about 30 ms, so there are few of them. PIL draws camera views.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECORDED, PREDICTED = "#404040", "#d55e00"
# Colours that can be told apart with any kind of colour vision (Okabe and Ito, 2008), and some more.
_PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#b5a900", "#7a5195", "#8c564b")
_LEGEND_ENTRIES = 10
_LONGEST_NAME = 34
_LINE, _FILLED = "\u2014", "\u25a0"  # marks of a legend
_DPI = 100
_COLUMNS = 4  # panels beside each other
_PANEL_INCHES = 2.5, 1.75
_HEAD_INCHES = 0.45  # above the panels, for the title

# Of camera views, in pixels.
_TILE, _GAP, _HEAD, _FOOT = 240, 8, 44, 20
_FINER = 2  # drawn at twice the size and reduced: smooth lines at little cost
_SHORTEST_SPAN_M = 0.01  # of the motion, so that a motion of a millimetre does not fill the picture
_PANEL_NAME = 28  # characters above a panel; longer names are written smaller


@dataclass(frozen=True)
class Panel:
    """A dimension: its name, the unit of its numbers, and the range that is always shown, so that pictures of different
    steps look alike; numbers beyond it widen it."""

    name: str
    unit: str = ""
    limits: tuple[float, float] | None = None


# ---- actions -----------------------------------------------------------------------------------------------


def draw_chunks(
    recorded: np.ndarray, predicted: np.ndarray, panels: Sequence[Panel], labels: Sequence[str], title: str
) -> np.ndarray:
    """Action chunks [samples, H, A], with a panel for each of the A dimensions and the samples side by side under
    `labels`. NaN after a chunk has ended.
    """
    samples, horizon, _ = recorded.shape
    starts = np.arange(samples) * (horizon + max(1, horizon // 4))
    figure, areas = _figure_with(panels, title, _LINE)
    for number, (panel, axes) in enumerate(zip(panels, areas, strict=True)):
        for values, colour in ((recorded, RECORDED), (predicted, PREDICTED)):
            for start, chunk in zip(starts, values[:, :, number], strict=True):
                axes.plot(start + np.arange(horizon), chunk, color=colour, linewidth=1.4, marker="o", markersize=2.2)
        axes.set_xticks(starts + (horizon - 1) / 2, labels)
        axes.set_xlim(-1, starts[-1] + horizon)
        axes.set_ylim(*_range(panel, recorded[..., number], predicted[..., number]))
    return to_pixels(figure)


def draw_distributions(
    recorded: np.ndarray, predicted: np.ndarray, panels: Sequence[Panel], title: str, bins: int = 40
) -> np.ndarray:
    """The finite values of [n, A], with a panel for each dimension: two overlaid histograms, in percent."""
    figure, areas = _figure_with(panels, title, _FILLED)
    for number, (panel, axes) in enumerate(zip(panels, areas, strict=True)):
        pair = [values[np.isfinite(values[:, number]), number] for values in (recorded, predicted)]
        edges = np.linspace(*_range(panel, *pair), bins + 1)
        for values, colour, filled in zip(pair, (RECORDED, PREDICTED), (True, False), strict=True):
            share = 100 * np.histogram(values, edges)[0] / max(1, len(values))
            axes.stairs(share, edges, color=colour, fill=filled, alpha=0.4 if filled else 1.0, linewidth=1.3)
        axes.set_ylim(bottom=0)
    return to_pixels(figure)


def draw_closing(predicted: np.ndarray, recorded: np.ndarray, unit: str, fps: float, title: str) -> np.ndarray:
    """Draw how far a gripper is closed, from 0 to 1, by the first action of the chunk predicted at each step of an
    episode and as recorded: float [T]. unit: what the predicted number is, such as P(close)."""
    figure = plain_figure(8.0, 2.8, title, _FILLED)
    axes = figure.add_axes((0.075, 0.18, 0.905, 0.62))
    edges = np.arange(len(recorded) + 1) / fps
    axes.stairs(recorded, edges, color=RECORDED, fill=True, alpha=0.25)
    axes.axhline(0.5, color="#999999", linewidth=0.8, linestyle="--")
    axes.plot(edges[:-1], predicted, color=PREDICTED, linewidth=1.5)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(-0.03, 1.03)
    style_axes(axes)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlabel("seconds", fontsize=9)
    axes.set_ylabel(f"{unit}, next action", fontsize=9)
    return to_pixels(figure)


# ---- camera views ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CameraView:
    """One camera's picture, uint8 [H, W, 3], and the motion in it if that is known: [n, 2] in its pixels, (right,
    down)."""

    name: str
    pixels: np.ndarray
    recorded: np.ndarray | None = None
    predicted: np.ndarray | None = None


def draw_views(
    views: Sequence[CameraView],
    recorded: np.ndarray,
    predicted: np.ndarray,
    axis_names: Sequence[str],
    title: str,
    note: str = "",
) -> np.ndarray:
    """Camera pictures side by side, then the motion [n, 2 or 3] (m, from the origin) from above and from the side.

    The planes show the first two dimensions, and the first and the third, both at the scale that a bar shows.
    """
    dims = recorded.shape[1]
    planes = [("from above", 1)] + ([("from the side", 2)] if dims > 2 else [])
    tiles = len(views) + len(planes)
    width, height = _GAP + tiles * (_TILE + _GAP), _HEAD + _TILE + _FOOT
    canvas = Image.new("RGB", (width * _FINER, height * _FINER), "white")
    draw = _Pen(canvas)
    draw.text((_GAP, 4), title, 13)
    end = draw.legend((_GAP, 24), "recorded", RECORDED)
    end = draw.legend((end, 24), "predicted", PREDICTED)
    draw.text((end, 24), note, 11, "#777777")
    for place, view in enumerate(views):
        corner = (_GAP + place * (_TILE + _GAP), _HEAD)
        scale = draw.picture(corner, view.pixels)
        paths = [(p, c) for p, c in ((view.recorded, RECORDED), (view.predicted, PREDICTED)) if p is not None]
        for path, _ in paths:
            draw.path(corner, path * scale, "white", width=4.4)  # so that they stand out from whatever is behind
        for path, colour in paths:
            draw.path(corner, path * scale, colour)
        draw.text((corner[0], _HEAD + _TILE + 3), view.name, 11)
    pixels_a_metre = 0.36 * _TILE / max(_SHORTEST_SPAN_M, float(np.abs([recorded, predicted]).max()))
    for place, (name, second) in enumerate(planes):
        corner = (_GAP + (len(views) + place) * (_TILE + _GAP), _HEAD)
        draw.plane(corner, (axis_names[0], axis_names[second]), pixels_a_metre)
        for motion, colour in ((recorded, RECORDED), (predicted, PREDICTED)):
            flat = np.stack([motion[:, 0], -motion[:, second]], axis=1)
            draw.path(corner, _TILE / 2 + flat * pixels_a_metre, colour)
        draw.text((corner[0], _HEAD + _TILE + 3), name, 11)
    return np.array(canvas.reduce(_FINER))


class _Pen:
    """Draws on a canvas that is `_FINER` times larger than its arguments say."""

    def __init__(self, canvas: Image.Image) -> None:
        self._canvas, self._draw = canvas, ImageDraw.Draw(canvas)

    def text(self, place: tuple[float, float], text: str, size: int, colour: str = "black") -> float:
        """Returns where it ends."""
        font = ImageFont.load_default(size * _FINER)
        x, y = place[0] * _FINER, place[1] * _FINER
        self._draw.text((x, y), text, fill=colour, font=font)
        return (x + self._draw.textlength(text, font)) / _FINER

    def legend(self, place: tuple[float, float], name: str, colour: str) -> float:
        """A short line and its name; returns where the next may begin."""
        x, y = place
        self._line([(x, y + 7), (x + 14, y + 7)], colour, 2.2)
        return self.text((x + 19, y), name, 11, colour) + 14

    def picture(self, corner: tuple[int, int], pixels: np.ndarray) -> float:
        """A picture within a tile; returns its enlargement."""
        scale = _TILE / max(pixels.shape[:2])
        size = [round(side * scale * _FINER) for side in (pixels.shape[1], pixels.shape[0])]
        picture = Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BICUBIC)
        self._canvas.paste(picture, (corner[0] * _FINER, corner[1] * _FINER))
        return scale

    def plane(self, corner: tuple[int, int], names: tuple[str, str], pixels_a_metre: float) -> None:
        """An empty tile with the directions of its axes and a bar of a round length."""
        x, y = corner
        self._line([(x, y), (x + _TILE, y), (x + _TILE, y + _TILE), (x, y + _TILE), (x, y)], "#bbbbbb", 1)
        foot = (x + 14, y + _TILE - 14)
        for dx, dy, name, place in ((24, 0, names[0], (28, -7)), (0, -24, names[1], (-6, -42))):
            self._line([foot, (foot[0] + dx, foot[1] + dy)], "#777777", 1.5)
            self.text((foot[0] + place[0], foot[1] + place[1]), name, 11, "#777777")
        length = round_length(0.4 * _TILE / pixels_a_metre)
        right = x + _TILE - 12
        self._line([(right - length * pixels_a_metre, foot[1]), (right, foot[1])], "#777777", 2)
        self.text((right - length * pixels_a_metre, foot[1] - 17), f"{1000 * length:g} mm", 11, "#777777")

    def path(self, corner: tuple[int, int], points: np.ndarray, colour: str, width: float = 2.2) -> None:
        """A line through points [n, 2] of a tile, with a small disc at its start and a larger one at its end; parts
        outside the tile are cut off."""
        mask = Image.new("L", (_TILE * _FINER, _TILE * _FINER))
        shape = ImageDraw.Draw(mask)
        places = [(float(x) * _FINER, float(y) * _FINER) for x, y in np.clip(points, -_TILE, 2 * _TILE)]
        shape.line(places, fill=255, width=round(width * _FINER), joint="curve")
        for (x, y), radius in ((places[0], 1.0), (places[-1], 2.4)):
            reach = (radius + width / 2) * _FINER
            shape.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
        self._canvas.paste(ImageColor.getrgb(colour), (corner[0] * _FINER, corner[1] * _FINER), mask)

    def _line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        places = [(x * _FINER, y * _FINER) for x, y in points]
        self._draw.line(places, fill=colour, width=round(width * _FINER))


def round_length(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most `most`."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(next(digit * power for digit in (5, 2, 1) if digit * power <= most))


# ---- features ----------------------------------------------------------------------------------------------


def draw_map(
    points: np.ndarray, group: np.ndarray, names: Sequence[str], axis_names: tuple[str, str], title: str
) -> np.ndarray:
    """Points [n, 2] coloured by their group, int [n], an index into `names`."""
    figure = plain_figure(8.4, 5.0, title)
    axes = figure.add_axes((0.08, 0.10, 0.57, 0.80))
    shown = [number for number in range(len(names)) if (group == number).any()]
    for row, number in enumerate(shown):
        colour, of_group = _PALETTE[number % len(_PALETTE)], points[group == number]
        axes.scatter(of_group[:, 0], of_group[:, 1], s=12, color=colour, alpha=0.75, linewidths=0)
        if row < _LEGEND_ENTRIES:
            figure.text(0.665, 0.87 - 0.05 * row, "\u25cf", color=colour, fontsize=11)
            figure.text(0.69, 0.87 - 0.05 * row, f"{shorten(names[number])}: {len(of_group)}", fontsize=8.5)
    if len(shown) > _LEGEND_ENTRIES:
        more = f"and {len(shown) - _LEGEND_ENTRIES} more (colours repeat)"
        figure.text(0.69, 0.87 - 0.05 * _LEGEND_ENTRIES, more, fontsize=8.5)
    style_axes(axes)
    axes.set_xlabel(axis_names[0], fontsize=9)
    axes.set_ylabel(axis_names[1], fontsize=9)
    return to_pixels(figure)


# ---- parts -------------------------------------------------------------------------------------------------


def to_pixels(figure: Figure) -> np.ndarray:
    """A matplotlib figure as uint8 [H, W, 3]: drawn into memory, without a PNG on the way."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # instructions in other scripts show as boxes
        canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3])


def shorten(text: str, most: int = _LONGEST_NAME) -> str:
    """The text, cut at `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def plain_figure(width: float, height: float, title: str, recorded_as: str | None = None) -> Figure:
    """Inches; the title is at the top left, the legend of what is recorded (with its mark) and what is predicted at
    the top right, where there is one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI)
    top = 1 - 0.25 / height
    figure.text(0.12 / width, top, title, fontsize=10)
    if recorded_as is not None:
        alpha = 0.5 if recorded_as == _FILLED else 1.0
        figure.text(1 - 1.8 / width, top, f"{recorded_as} recorded", color=RECORDED, fontsize=10, alpha=alpha)
        figure.text(1 - 0.9 / width, top, f"{_LINE} predicted", color=PREDICTED, fontsize=10)
    return figure


def _figure_with(panels: Sequence[Panel], title: str, recorded_as: str) -> tuple[Figure, list[Axes]]:
    """A figure with axes for each panel, in rows of four, each with its name and unit above."""
    across, down = _PANEL_INCHES
    width, height = across * _COLUMNS, _HEAD_INCHES + down * -(-len(panels) // _COLUMNS)
    figure = plain_figure(width, height, title, recorded_as)
    areas = []
    for number, panel in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        left, bottom = column * across + 0.5, height - _HEAD_INCHES - (row + 1) * down + 0.28
        axes = figure.add_axes((left / width, bottom / height, (across - 0.62) / width, (down - 0.55) / height))
        named = f"{panel.name} ({panel.unit})" if panel.unit else panel.name
        size = min(9.0, 9.0 * _PANEL_NAME / len(named))
        axes.text(0, 1.05, named, transform=axes.transAxes, fontsize=size)  # a title would be laid out, at some cost
        style_axes(axes)
        areas.append(axes)
    return figure, areas


def _range(panel: Panel, *values: np.ndarray) -> tuple[float, float]:
    """The panel's limits, widened to hold the finite values."""
    flat = np.concatenate([v[np.isfinite(v)] for v in values] + ([panel.limits] if panel.limits else []))
    low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 1.0)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def style_axes(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.tick_params(labelsize=8, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
