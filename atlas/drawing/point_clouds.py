"""Small parts of plots, drawn with Pillow: text, colour scales, ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

PAPER: Colour = (252, 252, 250)
INK: Colour = (30, 32, 38)
FAINT: Colour = (110, 114, 122)
MASKED: Colour = (200, 202, 206)  # where there is no value
_LINE = 13  # pixels that a tick's text needs

# From the lowest value to the highest; lightness only falls, or only rises, so they also read in grey.
NEAR_TO_FAR = np.array(
    [(255, 236, 140), (250, 176, 76), (229, 100, 78), (168, 54, 112), (92, 38, 122), (22, 20, 66)], dtype=np.float64
)
LOW_TO_HIGH = np.array([(18, 28, 40), (20, 80, 92), (40, 140, 110), (140, 196, 112), (246, 244, 180)], dtype=np.float64)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: Colour = INK, anchor: str = "la"
) -> None:
    """Text at a point; `anchor` as in Pillow: l, m, r along and a, m, d down."""
    draw.text(at, text, fill=colour, font=font(size), anchor=anchor)


def shortened(text: str, size: int, width: float) -> str:
    """The text, or its beginning and end, in at most `width` pixels."""
    letters = font(size)
    if letters.getlength(text) <= width:
        return text
    for length in range(len(text) - 1, 1, -1):
        short = f"{text[: length // 2]}...{text[len(text) - (length - length // 2) :]}"
        if letters.getlength(short) <= width:
            return short
    return "..."


@dataclass(frozen=True)
class Scale:
    """Colours for the values from `low` to `high`, both above 0: equal ratios are equal steps of colour."""

    low: float
    high: float
    colours: np.ndarray  # [n, 3], evenly spaced from low to high
    high_above: bool  # in the drawn bar

    @staticmethod
    def over(values: np.ndarray, colours: np.ndarray, high_above: bool) -> Scale:
        """A scale over all values, which must be above 0, except two hundredths at either end."""
        if not values.size:
            return Scale(1.0, 2.0, colours, high_above)
        low, high = (float(q) for q in np.quantile(values, (0.02, 0.98)))
        if high < 1.001 * low:  # practically one value: put it in the middle
            low, high = low / 1.1, high * 1.1
        return Scale(low, high, colours, high_above)

    def place(self, values: np.ndarray | float) -> np.ndarray:
        """The place of values between the ends: 0 to 1."""
        return np.clip(np.log(np.asarray(values, np.float64) / self.low) / math.log(self.high / self.low), 0, 1)

    def paint(self, values: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """Values [h, w], of which `shown` says which exist, as uint8 [h, w, 3]."""
        place = self.place(np.where(shown, values, self.low)) * (len(self.colours) - 1)
        left = np.minimum(place.astype(int), len(self.colours) - 2)
        share = (place - left)[..., None]
        painted = self.colours[left] * (1 - share) + self.colours[left + 1] * share
        return np.where(shown[..., None], painted.round(), MASKED).astype(np.uint8)

    def ticks(self) -> list[float]:
        """Round values within the scale."""
        if self.high / self.low < 5:
            return even_ticks(self.low, self.high, 5)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1, 1.5, 2, 3, 4, 5, 7) if self.high / self.low < 100 else (1, 2, 5)
        candidates = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [value for value in candidates if self.low <= value <= self.high]

    def draw(self, image: Image.Image, box: tuple[int, int, int, int], marks: Sequence[float] = ()) -> None:
        """The scale as an upright bar in the box (left, top, right, bottom), with its ticks to the right.

        marks: further values, shown by a line across the bar.
        """
        left, top, right, bottom = box
        draw = ImageDraw.Draw(image)
        values = np.geomspace(self.low, self.high, bottom - top)[:, None]
        bar = self.paint(values[::-1] if self.high_above else values, np.ones_like(values, dtype=bool))
        image.paste(Image.fromarray(bar).resize((right - left, bottom - top)), box)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=FAINT)
        taken: list[float] = []
        for value in (*marks, *self.ticks()):
            place = float(self.place(value))
            y = top + (1 - place if self.high_above else place) * (bottom - top - 1)
            if any(abs(y - other) < _LINE for other in taken):
                continue
            marked = len(taken) < len(marks)
            taken.append(y)
            draw.line((left - 4 if marked else right, y, right + 4, y), fill=INK, width=2 if marked else 1)
            write(draw, (right + 7, y), f"{value:.3g}", 12, anchor="lm")


def even_ticks(low: float, high: float, about: int) -> list[float]:
    """About `about` round, evenly spaced values from low to high."""
    step = (high - low) / about
    power = 10.0 ** math.floor(math.log10(step))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor - step / power))
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
