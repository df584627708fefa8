"""Films of several episodes at once: the worst ones, aligned at their failure, or one episode by two policies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from atlas.environments.environment import Environment
from atlas.rollout.traces import FilmOrder, pictures_of

_BEFORE_SECONDS, _AFTER_SECONDS, _HZ = 3.0, 1.0, 8.0
_CELL, _CAPTION, _HEAD, _GAP = 192, 34, 24, 4  # pixels
_GROUND, _TEXT, _QUIET, _FAILED = (22, 23, 28), (240, 240, 244), (160, 163, 176), (244, 96, 88)


@dataclass(frozen=True)
class OverviewCell:
    """One episode in an overview: its film's order, and the caption."""

    order: FilmOrder
    failed_at: int  # the number of steps after which it failed
    number: int
    what: str  # how it failed


@dataclass(frozen=True)
class OverviewOrder:
    """A grid of failures as an mp4 at `path`, from some seconds before each failure to a second after it."""

    path: Path
    cells: tuple[OverviewCell, ...]  # at least one

    def __len__(self) -> int:
        return sum(len(cell.order) for cell in self.cells)

    def frames(self, env: Environment) -> tuple[np.ndarray, float]:
        """uint8 [T, H, W, 3], and the frames per second. Before an episode begins its first picture is shown, and after
        it ends its last."""
        hz = env.spec.action_spec.control_hz
        every = max(1, round(hz / _HZ))
        steps = np.arange(-round(_BEFORE_SECONDS * hz / every), round(_AFTER_SECONDS * hz / every) + 1) * every
        columns = min(len(self.cells), 2 if len(self.cells) <= 4 else 3)
        rows = -(-len(self.cells) // columns)
        width = columns * (_CELL + _GAP) + _GAP
        height = _HEAD + rows * (_CELL + _CAPTION + _GAP) + _GAP
        frames = np.empty((len(steps), height + height % 2, width + width % 2, 3), np.uint8)
        frames[:] = _GROUND
        for place, cell in enumerate(self.cells):
            top = _HEAD + place // columns * (_CELL + _CAPTION + _GAP)
            left = _GAP + place % columns * (_CELL + _GAP)
            shown = np.clip(cell.failed_at + steps, 0, len(cell.order.trace))
            seen = {int(each): None for each in shown}
            pictures = dict(zip(seen, pictures_of(env, cell.order, list(seen)), strict=True))
            for time, step in enumerate(shown.tolist()):
                drawn = _cell(pictures[step], cell, hz, failed=bool(steps[time] >= 0))
                frames[time, top : top + _CELL + _CAPTION, left : left + _CELL] = drawn
        for time, step in enumerate(steps):
            frames[time, :_HEAD] = _head(frames.shape[2], float(step / hz))
        return frames, hz / every


def _cell(picture: np.ndarray, cell: OverviewCell, hz: float, failed: bool) -> np.ndarray:
    image = Image.new("RGB", (_CELL, _CELL + _CAPTION), _GROUND)
    image.paste(Image.fromarray(picture).resize((_CELL, _CELL), Image.Resampling.LANCZOS), (0, 0))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=11)
    if failed:
        draw.rectangle((0, 0, _CELL - 1, _CELL - 1), outline=_FAILED, width=3)
    caption = f"{cell.number}: {cell.what}, {cell.failed_at / hz:.1f} s"
    draw.text((2, _CELL + 9), _cut(caption, font), fill=_FAILED if failed else _TEXT, font=font, anchor="lm")
    draw.text((2, _CELL + 25), _cut(cell.order.instruction, font), fill=_QUIET, font=font, anchor="lm")
    return np.asarray(image)


def _head(width: int, seconds: float) -> np.ndarray:
    image = Image.new("RGB", (width, _HEAD), _GROUND)
    text = f"{seconds:+.1f} s from the moment of failure"
    colour = _FAILED if seconds >= 0 else _TEXT
    ImageDraw.Draw(image).text((_GAP, _HEAD // 2), text, fill=colour, font=ImageFont.load_default(size=12), anchor="lm")
    return np.asarray(image)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut to the width of a cell."""
    if font.getlength(text) <= _CELL - 4:
        return text
    while text and font.getlength(f"{text}…") > _CELL - 4:
        text = text[:-1]
    return f"{text}…"


@dataclass(frozen=True)
class SideBySideOrder:
    """The same episode played by two policies, as an mp4 at `path`; the shorter film waits at its end."""

    path: Path
    first: FilmOrder
    second: FilmOrder
    names: tuple[str, str]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def frames(self, env: Environment) -> tuple[np.ndarray, float]:
        """uint8 [T, H, W, 3], and the frames per second."""
        left, fps = self.first.frames(env)
        right, _ = self.second.frames(env)
        length = max(len(left), len(right))
        parts = []
        for name, frames in zip(self.names, (left, right), strict=True):
            held = np.concatenate([frames, np.repeat(frames[-1:], length - len(frames), axis=0)])
            head = np.broadcast_to(_title(name, frames.shape[2]), (length, _HEAD, frames.shape[2], 3))
            parts.append(np.concatenate([head, held], axis=1))
        gap = np.full((length, parts[0].shape[1], _GAP, 3), _GROUND, np.uint8)
        return np.concatenate([parts[0], gap, parts[1]], axis=2), fps


def _title(name: str, width: int) -> np.ndarray:
    image, font = Image.new("RGB", (width, _HEAD), _GROUND), ImageFont.load_default(size=12)
    while len(name) > 1 and font.getlength(name) > width - 2 * _GAP:
        name = f"…{name[2:]}"  # the end of a path tells more
    ImageDraw.Draw(image).text((_GAP, _HEAD // 2), name, fill=_TEXT, font=font, anchor="lm")
    return np.asarray(image)
