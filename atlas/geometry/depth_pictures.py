"""Pictures of a scene: each view's depth with its scale, and all cameras from above and from the side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from atlas.drawing.point_clouds import (
    FAINT,
    LOW_TO_HIGH,
    NEAR_TO_FAR,
    PAPER,
    Colour,
    Scale,
    even_ticks,
    font,
    shortened,
    write,
)
from atlas.geometry.scene import Scene

_MARGIN = 16
_TITLE = 30  # pixels above a panel or a plot
_BAR, _LABELS = 14, 36  # widths of a colour bar and of the text beside it
_LEAST = 320  # small images are enlarged by whole factors to at least this width
_SIDE, _TICKS, _ROW = 560, 48, 20  # a plot's side, the width of its ticks' text, the height of a line of the legend
_FINER = 2  # plots are drawn this many times larger, for smooth lines
_POINTS = 300_000  # at most, in a plot
_STEEPEST = 3.0  # half a drawn pyramid's width over its height
_GRID: Colour = (232, 233, 236)
_COLOURS: list[Colour] = [
    *((214, 69, 65), (31, 119, 180), (44, 140, 72), (222, 132, 24), (126, 87, 194)),
    *((0, 150, 160), (196, 64, 140), (120, 100, 40), (90, 110, 130), (150, 160, 20)),
]


# ---- depth -----------------------------------------------------------------------------------------------------


def depth_pictures(scene: Scene, names: Sequence[str], threshold: float) -> list[Image.Image]:
    """Draw for each view a picture of what it shows, of its depth and of its confidence.

    All share the same two scales, so that their colours can be compared. threshold: the confidence above which pixels
    became points, which is marked.
    """
    depth = Scale.over(scene.depth[scene.visible], NEAR_TO_FAR, high_above=False)
    confidence = Scale.over(scene.confidence[scene.visible], LOW_TO_HIGH, high_above=True)
    return [_depth_picture(scene, view, name, depth, confidence, threshold) for view, name in enumerate(names)]


def _depth_picture(
    scene: Scene, view: int, name: str, depth: Scale, confidence: Scale, threshold: float
) -> Image.Image:
    shown = scene.visible[view]
    height, width = shown.shape
    times = -(-_LEAST // width)
    height, width = height * times, width * times
    beside = _BAR + _LABELS + 2 * _MARGIN
    image = Image.new("RGB", (_MARGIN + width + _MARGIN + 2 * (width + beside), _TITLE + height + _MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    marks = [threshold] if confidence.low <= threshold <= confidence.high else []
    panels: tuple[tuple[str, np.ndarray, Scale | None, Sequence[float]], ...] = (
        (f"{view}  {name}", scene.colours[view], None, []),
        ("depth (the scene's unit)", depth.paint(scene.depth[view], shown), depth, []),
        ("confidence (above the mark: points)", confidence.paint(scene.confidence[view], shown), confidence, marks),
    )
    left = _MARGIN
    for title, pixels, scale, marked in panels:
        write(draw, (left, _TITLE / 2), shortened(title, 15, width), 15, anchor="lm")
        image.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, _TITLE))
        left += width + _MARGIN
        if scale is not None:
            scale.draw(image, (left - 4, _TITLE, left - 4 + _BAR, _TITLE + height), marked)
            left += _BAR + _LABELS + _MARGIN
    return image


# ---- cameras ---------------------------------------------------------------------------------------------------

Axis = tuple[int, int]  # of the world, 0 to 2, and the sign with which it grows


@dataclass(frozen=True)
class _Projection:
    """A flat view of the cube [middle - reach, middle + reach] of the world, along one of its axes."""

    title: str
    middle: np.ndarray  # [3]
    reach: float
    across: Axis
    up: Axis
    towards: Axis  # the axis that points at the reader

    def at(self, points: np.ndarray, side: int) -> np.ndarray:
        """Points [..., 3] to pixels (right, down) [..., 2] of a square picture."""
        places = (points - self.middle) / self.reach
        (i, right), (j, up) = self.across, self.up
        return (np.stack((places[..., i] * right, -places[..., j] * up), axis=-1) + 1) / 2 * side

    def ticks(self, axis: Axis) -> list[tuple[str, float]]:
        """An axis's round numbers, and how far along the picture each is, 0 to 1."""
        middle = float(self.middle[axis[0]]) * axis[1]
        found = even_ticks(middle - self.reach, middle + self.reach, 6)
        return [(f"{value:.3g}", (value - middle + self.reach) / (2 * self.reach)) for value in found]


def cameras_picture(scene: Scene, names: Sequence[str], points: np.ndarray, colours: np.ndarray) -> Image.Image:
    """The cameras, and the points float32 [N, 3] in their colours uint8 [N, 3], from above and from the right side."""
    every = max(1, len(points) // _POINTS)
    points, colours = points[::every], colours[::every]
    middle, reach = _extent(scene.positions, points)
    frusta = _frusta(scene, 0.18 * reach)
    above = _Projection("from above: z (forward) over x (right)", middle, reach, (0, 1), (2, 1), (1, -1))
    side = _Projection("from the right: -y (up) over z (forward)", middle, reach, (2, 1), (1, -1), (0, 1))

    rows = -(-len(names) // 2)
    bottom = _TITLE + _SIDE + _TICKS // 2 + _MARGIN
    image = Image.new("RGB", (2 * (_TICKS + _SIDE + _MARGIN), bottom + _ROW * rows + _MARGIN), PAPER)
    for left, view in ((_TICKS, above), (2 * _TICKS + _SIDE + _MARGIN, side)):
        image.paste(_plot(view, frusta, points, colours), (left, _TITLE))
        _frame(image, (left, _TITLE), view)
    for number, name in enumerate(names):
        _list_camera(
            image, (_TICKS + number % 2 * image.width // 2, bottom + _ROW * (number // 2)), scene, number, name
        )
    return image


def _extent(cameras: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
    """The middle [3] and half the side of a cube around all cameras [S, 3] and nearly all points [N, 3]."""
    corners = cameras
    if len(points):
        corners = np.concatenate((cameras, np.quantile(points, (0.02, 0.98), axis=0)))
    low, high = corners.min(axis=0), corners.max(axis=0)
    reach = 1.15 * float((high - low).max()) / 2
    return (low + high) / 2, reach if reach > 0 else 1.0


def _frusta(scene: Scene, length: float) -> np.ndarray:
    """Return for each camera its position and the four corners of its picture at distance `length`: [S, 5, 3] in the
    world."""
    height, width = scene.depth.shape[1:]
    found = []
    for view, k in enumerate(scene.intrinsics):
        x, y = width / 2 / k[0, 0], height / 2 / k[1, 1]
        x, y = np.clip((x, y), -_STEEPEST, _STEEPEST)
        corners = np.array([(0, 0, 0), (-x, -y, 1), (x, -y, 1), (x, y, 1), (-x, y, 1)]) * length
        found.append(scene.to_world(view, corners))
    return np.stack(found)


def _plot(view: _Projection, frusta: np.ndarray, points: np.ndarray, colours: np.ndarray) -> Image.Image:
    """The inside of a plot's frame: grid, points, cameras."""
    side = _FINER * _SIDE
    image = Image.new("RGB", (side, side), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for axis in (view.across, view.up):
        for _, place in view.ticks(axis):
            x, y = place * side, (1 - place) * side
            draw.line((x, 0, x, side) if axis == view.across else (0, y, side, y), fill=_GRID, width=_FINER)

    depth, sign = view.towards
    nearest_last = np.argsort(points[:, depth] * sign)
    across, down = view.at(points[nearest_last], side).clip(-1, side).astype(int).T
    pale = (colours[nearest_last] * 0.6 + 255 * 0.4).astype(np.uint8)  # so that the cameras stand out
    inside = (across >= 0) & (across < side - 1) & (down >= 0) & (down < side - 1)
    pixels = np.array(image)
    for dx, dy in np.ndindex(_FINER, _FINER):
        pixels[down[inside] + dy, across[inside] + dx] = pale[inside]

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for number in reversed(range(len(frusta))):  # the first camera last, on top
        _draw_camera(draw, view.at(frusta[number], side), number)
    return image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _draw_camera(draw: ImageDraw.ImageDraw, corners: np.ndarray, number: int) -> None:
    """A camera's position and its picture's corners, [5, 2] pixels, as a pyramid with the camera's number behind it."""
    colour = _COLOURS[number % len(_COLOURS)]
    apex, *base = (tuple(corner) for corner in corners.tolist())
    for corner in base:
        draw.line((*apex, *corner), fill=colour, width=_FINER)
    draw.line([*base, base[0]], fill=colour, width=2 * _FINER, joint="curve")
    draw.line((*base[0], *base[1]), fill=colour, width=4 * _FINER)  # the picture's upper edge
    x, y = apex
    draw.ellipse((x - 4 * _FINER, y - 4 * _FINER, x + 4 * _FINER, y + 4 * _FINER), fill=colour)
    backwards = corners[0] - corners[1:].mean(axis=0)
    length = float(np.hypot(*backwards))
    label = corners[0] + backwards / length * 14 * _FINER if length > 1 else corners[0] + 14 * _FINER
    draw.text(
        tuple(label),
        str(number),
        fill=colour,
        font=font(15 * _FINER),
        anchor="mm",
        stroke_width=2 * _FINER,
        stroke_fill="white",
    )


def _frame(image: Image.Image, at: tuple[int, int], view: _Projection) -> None:
    """Title, border and ticks around the plot whose upper left corner is at this pixel."""
    draw = ImageDraw.Draw(image)
    left, top = at
    write(draw, (left, _TITLE / 2), view.title, 15, anchor="lm")
    draw.rectangle((left - 1, top - 1, left + _SIDE, top + _SIDE), outline=FAINT)
    for text, place in view.ticks(view.across):
        write(draw, (left + place * _SIDE, top + _SIDE + 6), text, 12, anchor="ma")
    for text, place in view.ticks(view.up):
        write(draw, (left - 6, top + (1 - place) * _SIDE), text, 12, anchor="rm")


def _list_camera(image: Image.Image, at: tuple[int, int], scene: Scene, number: int, name: str) -> None:
    """A line of the legend: the camera's colour, number, file, position and fields of view."""
    draw = ImageDraw.Draw(image)
    x, y = at
    place = ", ".join(f"{value:.3g}" for value in scene.positions[number])
    horizontal, vertical = scene.fields_of_view[number]
    facts = f"   at ({place}), sees {horizontal:.0f}° x {vertical:.0f}°"
    draw.rectangle((x, y + 2, x + 11, y + 13), fill=_COLOURS[number % len(_COLOURS)])
    room = image.width // 2 - _TICKS - 24 - _MARGIN - font(13).getlength(facts)
    write(draw, (x + 20, y), shortened(f"{number}  {name}", 13, room) + facts, 13)
