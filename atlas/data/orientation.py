"""Which way up a source stores its images, and the one function that makes them upright."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

# upright: as a person expects. upside_down: rows reversed (OpenGL, so robosuite and LIBERO's HDF5 files).
# rotated_180: rows and columns reversed. mirrored: columns reversed (LIBERO sets that came through RLDS: the raw,
# upside-down images rotated by 180 degrees).
Orientation = Literal["upright", "upside_down", "rotated_180", "mirrored"]
ORIENTATIONS: tuple[Orientation, ...] = get_args(Orientation)


def turn_upright(images: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Images [..., H, W, 3] stored in `orientation`, made upright; its own inverse."""
    if orientation == "upside_down":
        images = images[..., ::-1, :, :]
    elif orientation == "rotated_180":
        images = images[..., ::-1, ::-1, :]
    elif orientation == "mirrored":
        images = images[..., :, ::-1, :]
    return np.ascontiguousarray(images)
