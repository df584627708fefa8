"""Charts, below a film's picture, of numbers for an episode's decisions, such as a critic's values."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import ImageDraw, ImageFont

CHART_HEIGHT = 46  # pixels, with the title above it
_TITLE = 13
_TRACK, _QUIET, _TEXT = (44, 46, 56), (160, 163, 176), (240, 240, 244)
_VALUE, _BESIDE = (232, 116, 196), (240, 228, 66)
_DIMMER = 0.4  # brightness of the part still to come


@dataclass(frozen=True)
class DecisionCurve:
    """A number for each of an episode's n decisions, which holds until the next decision."""

    title: str
    steps: tuple[int, ...]  # the episode's step before which each decision was made
    values: np.ndarray  # float [n]
    beside: np.ndarray | None = None  # float [n], for comparison
    beside_title: str = ""

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest of all finite numbers; made to differ where they are equal."""
        numbers = self.values if self.beside is None else np.concatenate([self.values, self.beside])
        finite = numbers[np.isfinite(numbers)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return (low, high) if high - low > 1e-6 * max(abs(low), abs(high)) else (low - 0.5, high + 0.5)


@dataclass(frozen=True)
class CurveChart:
    """A curve in a film: the past is bright, the future is dim."""

    curve: DecisionCurve
    length: int  # steps of the episode
    left: int
    top: int  # of its title
    right: int
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont

    def draw_ground(self, draw: ImageDraw.ImageDraw) -> None:
        """Draw the part that is the same in every frame."""
        draw.text((self.left, self.top + 6), self.curve.title, fill=_QUIET, font=self.font, anchor="lm")
        draw.rectangle((self.left, self.top + _TITLE, self.right, self._bottom), fill=_TRACK)
        for points, colour, width in self._lines:
            dim = tuple(round(_DIMMER * part) for part in colour)
            draw.line(points, fill=dim, width=width)

    def draw_step(self, draw: ImageDraw.ImageDraw, step: int) -> None:
        """Draw the curve up to and including this step, and the numbers of its decision."""
        place = max(0, bisect_right(self.curve.steps, step) - 1)
        for points, colour, width in self._lines:
            draw.line([*points[: 2 * place + 1], (self._x(step), points[2 * place][1])], fill=colour, width=width)
        right = self.right
        for text, colour in reversed(list(self._labels(place))):
            draw.text((right, self.top + 6), text, fill=colour, font=self.font, anchor="rm")
            right -= int(self.font.getlength(text)) + 8

    def _labels(self, place: int) -> list[tuple[str, tuple[int, int, int]]]:
        beside = self.curve.beside
        labels = [(f"{self.curve.values[place]:.3g}", _VALUE if beside is not None else _TEXT)]
        if beside is not None:
            labels.append((f"{self.curve.beside_title} {beside[place]:.3g}", _BESIDE))
        return labels

    @cached_property
    def _lines(self) -> list[tuple[list[tuple[float, float]], tuple[int, int, int], int]]:
        """Each line's corners, two per decision, its colour and its width; the thin line is on top."""
        main = self._corners(self.curve.values), _VALUE, 2
        beside = self.curve.beside
        return [main] if beside is None else [main, (self._corners(beside), _BESIDE, 1)]

    def _corners(self, values: np.ndarray) -> list[tuple[float, float]]:
        (low, high), corners = self.curve.ends, list[tuple[float, float]]()
        ends = (*self.curve.steps[1:], self.length)
        for begin, end, value in zip(self.curve.steps, ends, values.tolist(), strict=True):
            share = (value - low) / (high - low) if np.isfinite(value) else 0.0
            y = self._bottom - 3 - share * (self._bottom - self.top - _TITLE - 6)
            corners += [(self._x(begin), y), (self._x(end), y)]
        return corners

    def _x(self, step: int) -> float:
        return self.left + 3 + (self.right - self.left - 6) * step / max(1, self.length)

    @property
    def _bottom(self) -> int:
        return self.top + CHART_HEIGHT - 4
