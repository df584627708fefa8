"""Films of rollouts: pictures with the instruction and the outcome drawn in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
