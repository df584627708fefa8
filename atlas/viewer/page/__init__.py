"""One HTML file that holds all of an episode, and needs no other file."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atlas.drawing.action_curves import Curve
from atlas.system.files import write_text
from atlas.system.progress import progress_bar
from atlas.viewer.episode_timeline import EpisodeTimeline

_PARTS = Path(__file__).parent
_QUALITY = 86  # of WebP
_SIDES = (512, 384, 256, 192, 128)  # pixels that a picture's longer side may have
_MOST_PIXELS = 100e6  # in all pictures: about fifteen megabytes
_DIGITS = 5


def write_page(path: Path, timeline: EpisodeTimeline) -> None:
    """Write the page, atomically."""
    data = json.dumps(_data(timeline), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    page = (_PARTS / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(f"{timeline.episode.instruction} · episode {timeline.number}"),
        "STYLE": (_PARTS / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (_PARTS / "page.js").read_text(encoding="utf-8"),
        "DATA": data.replace("<", "\\u003c"),  # nothing in it can end the script
    }
    # All at once: what is put in, such as an instruction, may contain such a mark itself, and is not searched again.
    page = re.sub("@([A-Z]+)@", lambda match: parts[match[1]], page)
    write_text(path, page)


def _data(timeline: EpisodeTimeline) -> dict[str, Any]:
    prediction, closed = timeline.prediction, timeline.closed
    groups = [
        ("Actions", "as recorded" if timeline.spec.delta else "targets, as recorded", timeline.actions),
        ("Proprio", "as the robot measured it", timeline.proprio),
    ]
    return {
        "dataset": timeline.dataset,
        "number": timeline.number,
        "episodes": timeline.episodes,
        "instruction": timeline.episode.instruction,
        "changes": timeline.changes,
        "length": len(timeline),
        "hz": timeline.hz,
        "chips": _chips(timeline),
        "cameras": _cameras(timeline),
        "groups": [
            {
                "title": title,
                "note": note,
                "curves": [_curve(curve, i, timeline, title) for i, curve in enumerate(curves)],
            }
            for title, note, curves in groups
        ],
        "path": {
            "title": "path of the hand" if timeline.path_is_measured else "path that the actions command",
            "arms": [
                {"points": _rounded(path), "closed": closed[arm].tolist() if arm in closed else None}
                for arm, path in timeline.paths.items()
            ],
        },
        "closed": [each.tolist() for each in closed.values()],
        "chunks": None if prediction is None else _rounded(prediction.chunks),
        "error": None if prediction is None else _rounded(prediction.farthest[0]),
        "error_unit": "" if prediction is None else prediction.farthest[1],
    }


def _chips(timeline: EpisodeTimeline) -> list[tuple[str, str]]:
    """Short facts, each with its colour."""
    outcome = {True: ("success", "good"), False: ("failure", "bad"), None: ("outcome not recorded", "")}
    facts = [
        outcome[timeline.episode.success],
        (f"{len(timeline)} frames, {len(timeline) / timeline.hz:.1f} s at {timeline.hz:g} Hz", ""),
        (timeline.format, ""),
    ]
    if timeline.fps != timeline.hz:
        facts.append((f"labelled {timeline.fps:g} fps", ""))
    if timeline.prediction is not None:
        facts.append((f"{timeline.prediction.name}: {timeline.prediction.summary()}", "predicted"))
    return facts


def _curve(curve: Curve, dimension: int, timeline: EpisodeTimeline, group: str) -> dict[str, Any]:
    predicted = timeline.prediction.chunks[:, 0, dimension] if timeline.prediction and group == "Actions" else None
    return {
        "name": curve.name,
        "unit": curve.unit,
        "colour": curve.kind,
        "dimension": dimension,
        "low": curve.limits[0],
        "high": curve.limits[1],
        "least": curve.ends[0],
        "most": curve.ends[1],
        "values": _rounded(curve.values),
        "predicted": None if predicted is None else _rounded(predicted),
    }


def _cameras(timeline: EpisodeTimeline) -> list[dict[str, Any]]:
    found = []
    with progress_bar("pictures", len(timeline.cameras) * len(timeline)) as advance:
        for camera, (height, width) in timeline.cameras.items():
            size = shown_size(height, width, len(timeline.cameras) * len(timeline))
            frames = []
            for picture in timeline.pictures(camera):
                frames.append(_encoded(picture, size))
                advance(1)
            found.append({"name": camera, "height": size[0], "width": size[1], "frames": frames})
    return found


def shown_size(height: int, width: int, pictures: int) -> tuple[int, int]:
    """Height and width of pictures on the page: unchanged, or smaller if all of them would be too much."""
    fitting = (side for side in _SIDES if pictures * height * width * (side / max(height, width)) ** 2 <= _MOST_PIXELS)
    scale = min(1.0, next(fitting, _SIDES[-1]) / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _encoded(picture: np.ndarray, size: tuple[int, int]) -> str:
    image, file = Image.fromarray(picture), io.BytesIO()
    if picture.shape[:2] != size:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    image.save(file, "WEBP", quality=_QUALITY, method=2)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _rounded(values: np.ndarray) -> Sequence[Any]:
    """Nested lists of numbers with as many digits as a curve can show."""
    most = float(np.abs(values).max(initial=0.0))
    digits = _DIGITS - 1 - math.floor(math.log10(most)) if most > 0 else 0
    return np.round(values, digits).tolist()
