"""Draws a policy's views, one below the other, with the places where it looks."""

from __future__ import annotations

import colorsys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

_GROUND = (22, 23, 28)
_LEAST = 0.08  # certainty below which a point is not drawn, since it may be anywhere
_DIM = 0.35  # brightness of the picture where a map has no weight


@dataclass(frozen=True)
class Look:
    """One decision: the policy's V views, and where it looked in each."""

    step: int  # of the episode
    images: np.ndarray  # uint8 [V, S, S, 3], as the network saw them
    points: np.ndarray | None  # float32 [V, K, 3], see `Attention`
    maps: np.ndarray | None  # float32 [V, h, w]


class AttentionColumn:
    """Draws at each step the views of the last decision, whose actions are being executed."""

    def __init__(self, looks: Sequence[Look], height: int) -> None:
        """looks: one episode's, at least one, in their order. height: of the column, pixels."""
        self._looks, self._height = looks, height
        self._steps = [look.step for look in looks]
        self._side = height // max(2, len(looks[0].images))
        self._drawn: tuple[int, np.ndarray] | None = None

    @property
    def width(self) -> int:
        return self._side

    def at(self, step: int) -> np.ndarray:
        """uint8 [height, width, 3]"""
        place = max(0, bisect_right(self._steps, step) - 1)
        if self._drawn is None or self._drawn[0] != place:
            self._drawn = place, self._draw(self._looks[place])
        return self._drawn[1]

    def _draw(self, look: Look) -> np.ndarray:
        column = Image.new("RGB", (self._side, self._height), _GROUND)
        for view, image in enumerate(look.images):
            tile = Image.fromarray(image).resize((self._side, self._side), Image.Resampling.BICUBIC)
            if look.maps is not None:
                tile = _lit(tile, look.maps[view])
            if look.points is not None:
                _mark(tile, look.points[view])
            column.paste(tile, (0, view * self._side))
        return np.asarray(column)


def _lit(tile: Image.Image, weights: np.ndarray) -> Image.Image:
    """The picture dimmed where the map [h, w] has little weight."""
    relative = weights / max(float(weights.max()), 1e-12)
    mask = Image.fromarray((255 * relative).astype(np.uint8)).resize(tile.size, Image.Resampling.BICUBIC)
    dark = Image.fromarray((np.asarray(tile) * _DIM).astype(np.uint8))
    return Image.composite(tile, dark, mask)


def _mark(tile: Image.Image, points: np.ndarray) -> None:
    """Draw a ring at each point [K, 3], smaller the more certain it is. Each point keeps its own colour."""
    draw = ImageDraw.Draw(tile)
    for number, (x, y, certainty) in enumerate(points.tolist()):
        if certainty < _LEAST:
            continue
        red, green, blue = colorsys.hsv_to_rgb(number / len(points), 0.75, 1.0)
        radius = 2.0 + 5.0 * (1 - certainty)
        left, top = x * tile.width, y * tile.height
        ring = (left - radius, top - radius, left + radius, top + radius)
        draw.ellipse(ring, outline=(int(255 * red), int(255 * green), int(255 * blue)), width=2)
