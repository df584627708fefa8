"""Pictures that checks leave as evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from atlas.drawing.point_clouds import FAINT, INK, PAPER, shortened, write
from atlas.system.files import atomic_path

_TILE, _GAP, _HEAD, _FOOT = 160, 8, 26, 20
_MARK = (0, 130, 90)
_BINS = 60
_PANEL, _COLUMNS = (230, 120), 4
_BAR = (64, 64, 64)


def draw_histograms(path: Path, values: np.ndarray, names: Sequence[str]) -> None:
    """The distribution of each dimension of values [N, D], as a PNG; bars show the root of their counts, so that rare
    values are visible."""
    rows = -(-len(names) // _COLUMNS)
    width, height = _PANEL
    image = Image.new("RGB", (_COLUMNS * (width + _GAP) + _GAP, rows * (height + _HEAD + _FOOT + _GAP) + _GAP), PAPER)
    draw = ImageDraw.Draw(image)
    for number, name in enumerate(names):
        left = _GAP + number % _COLUMNS * (width + _GAP)
        top = _GAP + number // _COLUMNS * (height + _HEAD + _FOOT + _GAP) + _HEAD
        column = values[:, number].astype(np.float64)
        low, high = float(column.min()), float(column.max())
        counts, _ = np.histogram(column, _BINS, (low, high if high > low else low + 1))
        tall = np.sqrt(counts / max(1, counts.max())) * height
        write(draw, (left, top - 6), shortened(name, 13, width), 13, INK, "ls")
        for i, bar in enumerate(tall):
            if bar > 0:
                x = left + i * width / _BINS
                draw.rectangle((x, top + height - bar, x + width / _BINS - 1, top + height), fill=_BAR)
        draw.line((left, top + height, left + width, top + height), fill=FAINT)
        write(draw, (left, top + height + 4), f"{low:.4g}", 11, FAINT)
        write(draw, (left + width, top + height + 4), f"{high:.4g}", 11, FAINT, "ra")
    _save(image, path)


def draw_side_by_side(path: Path, title: str, rows: Sequence[Sequence[tuple[str, np.ndarray]]], marked: str) -> None:
    """Rows of pictures uint8 [H, W, 3] with text under them; those whose text begins with `marked` get a frame."""
    columns = max(len(row) for row in rows)
    width = max(columns * (_TILE + _GAP) + _GAP, 420)
    image = Image.new("RGB", (width, _HEAD + len(rows) * (_TILE + _FOOT + _GAP) + _GAP), PAPER)
    draw = ImageDraw.Draw(image)
    write(draw, (_GAP, _HEAD - 8), shortened(title, 13, width - 2 * _GAP), 13, INK, "ls")
    for number, row in enumerate(rows):
        top = _HEAD + number * (_TILE + _FOOT + _GAP)
        for place, (text, pixels) in enumerate(row):
            left = _GAP + place * (_TILE + _GAP)
            image.paste(Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.NEAREST), (left, top))
            fits = text.startswith(marked)
            if fits:
                draw.rectangle((left - 3, top - 3, left + _TILE + 2, top + _TILE + 2), outline=_MARK, width=3)
            write(draw, (left, top + _TILE + 5), shortened(text, 11, _TILE), 11, _MARK if fits else FAINT)
    _save(image, path)


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as partial:
        image.save(partial, "PNG")
