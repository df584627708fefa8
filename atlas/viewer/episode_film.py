"""An episode as a film: the cameras side by side, and below them the curves with a moving cursor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from atlas.drawing.action_curves import Curve
from atlas.system.progress import progress_bar
from atlas.tracking.media_values import write_mp4
from atlas.viewer.episode_timeline import EpisodeTimeline

_WIDTH = 1280
_MARGIN, _GAP = 24, 12
_CAMERA_HEIGHT = 400  # at most
_TITLE = 74
_ROW, _NAME, _VALUE = 46, 96, 76
_GROUND, _CARD, _LINE = (16, 18, 22), (24, 27, 33), (52, 57, 68)
_TEXT, _QUIET, _CURSOR = (236, 238, 242), (141, 148, 163), (255, 255, 255)
_COLOURS = {"position": (98, 168, 255), "rotation": (255, 180, 84), "gripper": (95, 211, 154), "state": (169, 156, 255)}
_PREDICTED = (255, 122, 178)
_Box = tuple[int, int, int, int]  # left, top, right, bottom


def write_film(path: Path, timeline: EpisodeTimeline) -> None:
    """Write the film as an mp4, atomically, at real speed."""
    drawing = _Drawing(timeline)
    with progress_bar("drawing the film", len(timeline)) as advance:

        def frames() -> Iterator[np.ndarray]:
            for frame, pictures in enumerate(
                zip(*(timeline.pictures(camera) for camera in timeline.cameras), strict=True)
            ):
                yield drawing.frame(frame, pictures)
                advance(1)

        write_mp4(path, frames(), timeline.hz)


class _Drawing:
    """Draws frames; what is the same in every frame is drawn once."""

    def __init__(self, timeline: EpisodeTimeline) -> None:
        self._story = timeline
        self._small, self._font, self._large = (ImageFont.load_default(size=size) for size in (12, 15, 24))
        self._cameras = self._place_cameras()
        bottom = max(box[3] for box in self._cameras) + _GAP * 2
        half = (_WIDTH - 2 * _MARGIN - 2 * _GAP) // 2
        names = [curve.name for curves in (timeline.actions, timeline.proprio) for curve in curves]
        self._name = round(max(_NAME, *(self._font.getlength(name) + 2 * _GAP for name in names)))
        self._rows: list[tuple[Curve, int, _Box]] = []  # curve, its number among the actions or -1, where it is drawn
        for column, curves in enumerate((timeline.actions, timeline.proprio)):
            left = _MARGIN + column * (half + 2 * _GAP)
            for row, curve in enumerate(curves):
                top = bottom + row * _ROW
                box = (left + self._name, top + 6, left + half - _VALUE, top + _ROW - 6)
                self._rows.append((curve, row if column == 0 else -1, box))
        height = bottom + max(len(timeline.actions), len(timeline.proprio)) * _ROW + _MARGIN // 2
        self.height = height + height % 2  # H.264 wants even sides
        self._backgrounds = {text: self._draw_background(text) for text in dict.fromkeys(timeline.instructions)}

    def frame(self, frame: int, pictures: tuple[np.ndarray, ...]) -> np.ndarray:
        """uint8 [height, 1280, 3]. pictures: of the cameras, uint8 [H, W, 3] each."""
        image = self._backgrounds[self._story.instructions[frame]].copy()
        draw = ImageDraw.Draw(image)
        for box, picture in zip(self._cameras, pictures, strict=True):
            size = (box[2] - box[0], box[3] - box[1])
            image.paste(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), box[:2])
        last = max(1, len(self._story) - 1)
        clock = f"{frame} / {last}    {frame / self._story.hz:.2f} s"
        draw.text((_WIDTH - _MARGIN, 38), clock, fill=_TEXT, font=self._font, anchor="rm")
        for curve, number, box in self._rows:
            x = box[0] + (box[2] - box[0]) * frame / last
            draw.line((x, box[1] - 5, x, box[3] + 5), fill=_CURSOR)
            middle, right = (box[1] + box[3]) // 2, box[2] + _VALUE
            prediction = self._story.prediction
            if prediction is not None and number >= 0:
                ahead = prediction.chunks[frame, : len(self._story) - frame, number]
                if len(ahead) > 1:
                    draw.line(_points(ahead, curve, box, frame, last), fill=_PREDICTED, width=2)
                value = prediction.chunks[frame, 0, number]
                draw.text((right, middle + 8), f"{value:.2f}", fill=_PREDICTED, font=self._small, anchor="rm")
                middle -= 8
            y = _points(curve.values[frame : frame + 1], curve, box, frame, last)[0][1]
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_COLOURS[curve.kind], outline=_GROUND)
            draw.text((right, middle), f"{curve.values[frame]:.2f}", fill=_TEXT, font=self._font, anchor="rm")
        return np.asarray(image)

    def _place_cameras(self) -> list[_Box]:
        """Side by side, all of one height, in the middle."""
        shapes = [width / height for height, width in self._story.cameras.values()]
        free = _WIDTH - 2 * _MARGIN - _GAP * (len(shapes) - 1)
        height = min(_CAMERA_HEIGHT, int(free / sum(shapes)))
        widths = [round(height * shape) for shape in shapes]
        left = (_WIDTH - sum(widths) - _GAP * (len(shapes) - 1)) // 2
        boxes = []
        for width in widths:
            boxes.append((left, _TITLE, left + width, _TITLE + height))
            left += width + _GAP
        return boxes

    def _draw_background(self, instruction: str) -> Image.Image:
        timeline = self._story
        image = Image.new("RGB", (_WIDTH, self.height), _GROUND)
        draw = ImageDraw.Draw(image)
        draw.text((_MARGIN, 30), instruction, fill=_TEXT, font=self._large, anchor="lm")
        outcome = {True: "success", False: "failure", None: "outcome not recorded"}[timeline.episode.success]
        about = f"{Path(timeline.dataset).name}, episode {timeline.number} of {timeline.episodes}, {outcome}"
        if timeline.prediction is not None:
            about += f"; {timeline.prediction.name}: {timeline.prediction.summary()}".replace("°", " degrees")
        draw.text((_MARGIN, 57), about, fill=_QUIET, font=self._small, anchor="lm")
        last = max(1, len(timeline) - 1)
        for curve, number, box in self._rows:
            middle = (box[1] + box[3]) // 2
            draw.rectangle((box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4), fill=_CARD)
            draw.text((box[0] - self._name, middle - 7), curve.name, fill=_TEXT, font=self._font, anchor="lm")
            draw.text((box[0] - self._name, middle + 9), curve.unit, fill=_QUIET, font=self._small, anchor="lm")
            low, high = curve.limits
            if low < 0 < high:
                y = _points(np.zeros(1), curve, box, 0, last)[0][1]
                draw.line((box[0], y, box[2], y), fill=_LINE)
            if timeline.prediction is not None and number >= 0:
                first = _points(timeline.prediction.chunks[:, 0, number], curve, box, 0, last)
                for start in range(0, len(first) - 1, 2):  # dashed
                    draw.line(first[start : start + 2], fill=_PREDICTED)
            draw.line(_points(curve.values, curve, box, 0, last), fill=_COLOURS[curve.kind], width=2)
        return image


def _points(values: np.ndarray, curve: Curve, box: _Box, first: int, last: int) -> list[tuple[float, float]]:
    """The points at which values [n] from frame `first` on are drawn."""
    low, high = curve.limits
    x = box[0] + (box[2] - box[0]) * (first + np.arange(len(values))) / last
    y = box[3] - (box[3] - box[1]) * (np.clip(values, low, high) - low) / (high - low)
    return list(zip(x.tolist(), y.tolist(), strict=True))
