"""Draws the frames of a rollout's film: the picture, the instruction, the step and the policy's action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from atlas.rollout.filming.decision_curves import CHART_HEIGHT, CurveChart, DecisionCurve
from atlas.rollout.success_report import Verdict
from atlas.types import ActionSpec

_MARGIN = 8  # pixels
_TITLE_LINE = 18
_ROW = 12  # of an action's bar
_LABEL = (24, 60)  # the least and the most width of the names beside the bars; longer ones lose their beginning

_GROUND, _TRACK, _LINE = (22, 23, 28), (44, 46, 56), (92, 95, 110)
_TEXT, _QUIET = (240, 240, 244), (160, 163, 176)
_POSITION, _ROTATION, _GRIPPER = (82, 156, 255), (255, 178, 66), (96, 214, 150)
_COLOURS = {"rotation": _ROTATION, "joints": _ROTATION, "gripper": _GRIPPER}  # of kinds; of others, a position's
_FUTURE = (62, 92, 80)  # of the gripper's curve
_VERDICTS = {"success": (70, 200, 110), "failure": (244, 96, 88), "ended": (160, 163, 176)}


class FilmDrawing:
    """Draws the frames of one episode's film around its pictures.

    Above the picture are the instruction and the step. Below it are a bar for each number of the action (full at 1, or
    at the episode's largest value if that is more) and each gripper's command over the whole episode. Below these there
    may be curves of the decisions.
    """

    def __init__(
        self,
        instruction: str,
        actions: np.ndarray,
        spec: ActionSpec,
        size: int,
        curves: Sequence[DecisionCurve] = (),
    ) -> None:
        """actions: float [T, A], in `spec`'s units. size: of the square pictures, in pixels."""
        self._actions, self._spec, self._size = actions, spec, size
        self._full = np.maximum(1.0, np.abs(actions).max(axis=0))  # [A]
        self._colours = [_COLOURS.get(group.kind, _POSITION) for group in spec.groups for _ in group.names]
        self._small, self._large = ImageFont.load_default(size=10), ImageFont.load_default(size=13)
        self._steps_width = _width(self._small, f"{len(actions)} / {len(actions)}")
        lines = _wrap(instruction, self._large, size - 3 * _MARGIN - self._steps_width)
        self._top = _TITLE_LINE * len(lines) + _MARGIN
        self._bars_top = self._top + size + _MARGIN
        curves_top = self._bars_top + _ROW * max(spec.dim, 4) + _MARGIN // 2
        self._curves = [
            CurveChart(curve, len(actions), _MARGIN, curves_top + CHART_HEIGHT * row, size - _MARGIN, self._small)
            for row, curve in enumerate(curves)
        ]
        height = curves_top + CHART_HEIGHT * len(curves)
        self.shape = (height + height % 2, size, 3)  # H.264 needs even sides
        readable = spec.readable(actions)
        self._charts = [
            _Chart(box, " ".join(filter(None, (gripper.arm, gripper.readable[1]))), readable[:, dimension])
            for box, (dimension, gripper) in zip(self._boxes(), spec.grippers, strict=True)
        ]
        self._background = self._draw_background(lines)

    @property
    def picture_top(self) -> int:
        """The row at which the picture begins."""
        return self._top

    @property
    def ground(self) -> tuple[int, int, int]:
        """The colour around everything."""
        return _GROUND

    def frame(self, picture: np.ndarray, step: int) -> np.ndarray:
        """uint8 [H, W, 3], see `shape`. picture: uint8 [size, size, 3], the scene before action `step`."""
        return np.asarray(self._draw(picture, step))

    def last_frame(self, picture: np.ndarray, verdict: Verdict) -> np.ndarray:
        """The frame after the last action, with the episode's verdict."""
        image = self._draw(picture, len(self._actions) - 1)
        draw = ImageDraw.Draw(image)
        colour = _VERDICTS[verdict]
        bottom = self._top + self._size - 1
        draw.rectangle((0, self._top, self._size - 1, bottom), outline=colour, width=3)
        badge = (0, bottom - 22, _width(self._large, verdict) + 2 * _MARGIN, bottom)
        draw.rectangle(badge, fill=colour)
        draw.text((_MARGIN, bottom - 11), verdict, fill=_GROUND, font=self._large, anchor="lm")
        return np.asarray(image)

    # ---- inside ------------------------------------------------------------------------------------------

    def _draw(self, picture: np.ndarray, step: int) -> Image.Image:
        image = self._background.copy()
        image.paste(Image.fromarray(picture), (0, self._top))
        draw = ImageDraw.Draw(image)
        place = (self._size - _MARGIN, _MARGIN // 2 + _TITLE_LINE // 2)
        draw.text(place, f"{step + 1} / {len(self._actions)}", fill=_QUIET, font=self._small, anchor="rm")
        left, right = self._tracks
        middle, reach = (left + right) / 2, (right - left) / 2
        for dimension, value in enumerate(self._actions[step] / self._full):
            top = self._bars_top + _ROW * dimension
            end = middle + reach * float(value)
            bar = (min(middle, end), top + 2, max(middle, end), top + _ROW - 3)
            draw.rectangle(bar, fill=self._colours[dimension])
        for chart in self._charts:
            _, top, right, _ = chart.box
            draw.text((right, top - 7), f"{chart.values[step]:.2f}", fill=_TEXT, font=self._small, anchor="rm")
            draw.line(chart.points[: step + 1], fill=_GRIPPER, width=2)
            x, y = chart.points[step]
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_GRIPPER)
        for curve in self._curves:
            curve.draw_step(draw, step)
        return image

    def _draw_background(self, lines: list[str]) -> Image.Image:
        """The part that is the same in every frame."""
        image = Image.new("RGB", (self.shape[1], self.shape[0]), _GROUND)
        draw = ImageDraw.Draw(image)
        for i, line in enumerate(lines):
            middle = _MARGIN // 2 + _TITLE_LINE * i + _TITLE_LINE // 2
            draw.text((_MARGIN, middle), line, fill=_TEXT, font=self._large, anchor="lm")
        left, right = self._tracks
        for dimension, name in enumerate(self._labels):
            top = self._bars_top + _ROW * dimension
            draw.text((_MARGIN, top + _ROW // 2 - 1), name, fill=_QUIET, font=self._small, anchor="lm")
            draw.rectangle((left, top + 2, right, top + _ROW - 3), fill=_TRACK)
            draw.line(((left + right) // 2, top, (left + right) // 2, top + _ROW - 1), fill=_LINE)
        for chart in self._charts:
            left, top, right, bottom = chart.box
            draw.text((left, top - 7), chart.title, fill=_QUIET, font=self._small, anchor="lm")
            draw.rectangle(chart.box, fill=_TRACK)
            draw.line((left, (top + bottom) // 2, right, (top + bottom) // 2), fill=_LINE)
            draw.line(chart.points, fill=_FUTURE, width=2)
        for curve in self._curves:
            curve.draw_ground(draw)
        return image

    @cached_property
    def _labels(self) -> list[str]:
        """The names of the numbers, as far as there is room: their ends, since what tells joints apart stands there."""
        room = min(_LABEL[1], max(_LABEL[0], self._size // 2 - _LABEL[1]))
        labels = []
        for name in self._spec.names:
            label = "grip" if name == "gripper" else name
            while _width(self._small, label) > room and len(label) > 2:
                label = f"…{label[2:]}"
            labels.append(label)
        return labels

    @property
    def _tracks(self) -> tuple[int, int]:
        """The left and right ends of full bars."""
        widest = max(_width(self._small, label) for label in self._labels)
        return _MARGIN + max(widest + 2, _LABEL[0]), self._size // 2 - _MARGIN // 2

    def _boxes(self) -> list[_Box]:
        """Left, top, right and bottom of each gripper's chart, one below the other."""
        left, bottom = self._size // 2 + 2 * _MARGIN, self._bars_top + _ROW * max(self._spec.dim, 4) - 3
        ends = np.linspace(self._bars_top, bottom, len(self._spec.grippers) + 1).round().astype(int).tolist()
        return [(left, top + 14, self._size - _MARGIN, end) for top, end in pairwise(ends)]


_Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Chart:
    """A gripper's command at each step of an episode: values float64 [T], from 0 to 1."""

    box: _Box
    title: str
    values: np.ndarray

    @cached_property
    def points(self) -> list[tuple[float, float]]:
        """The curve's points, one per step."""
        left, top, right, bottom = self.box
        x = np.linspace(left + 3, right - 3, len(self.values))
        y = bottom - 3 - (bottom - top - 6) * self.values
        return list(zip(x.tolist(), y.tolist(), strict=True))


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _width(font: _Font, text: str) -> int:
    return int(font.getlength(text)) + 1


def _wrap(text: str, font: _Font, width: int) -> list[str]:
    """The text in at most three lines of `width` pixels; a longer text ends in dots."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > 3:
        lines = [*lines[:2], f"{lines[2]} …"]
    return lines
