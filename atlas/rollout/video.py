"""Films of rollouts: pictures with the instruction and the outcome drawn in, as mp4."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from atlas.files import atomic_path

_BAR = 24  # pixels under the picture for the text
_HOLD_SECONDS = 0.7  # the last picture stays, so that the outcome can be read


def caption(frame: np.ndarray, text: str, colour: tuple[int, int, int] = (235, 235, 235)) -> np.ndarray:
    """The picture uint8 [H, W, 3] with a line of text below: uint8 [H + 24, W, 3]."""
    height, width = frame.shape[:2]
    image = Image.new("RGB", (width, height + _BAR), (20, 20, 24))
    image.paste(Image.fromarray(frame))
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(image).text((6, height + 4), text, fill=colour, font=font)
    return np.asarray(image)


def film(frames: Sequence[np.ndarray], instruction: str, success: bool, fps: float) -> list[np.ndarray]:
    """The frames with the instruction, and at the end the outcome."""
    outcome, colour = ("success", (90, 220, 120)) if success else ("failure", (255, 110, 100))
    drawn = [caption(frame, instruction) for frame in frames[:-1]]
    last = caption(frames[-1], f"{instruction}: {outcome}", colour)
    return drawn + [last] * max(1, round(_HOLD_SECONDS * fps))


def write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Encode frames uint8 [H, W, 3] (even sizes) as H.264."""
    height, width = frames[0].shape[:2]
    with atomic_path(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
