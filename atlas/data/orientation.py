"""The way up in which a source stores its images, and upright images from those."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

# upright: as a person expects. upside_down: rows reversed (OpenGL, and so robosuite and LIBERO's HDF5 files).
# rotated_180: rows and columns reversed. mirrored: columns reversed (LIBERO datasets that came through RLDS: the raw,
# upside-down images rotated by 180 degrees).
Orientation = Literal["upright", "upside_down", "rotated_180", "mirrored"]
ORIENTATIONS: tuple[Orientation, ...] = get_args(Orientation)


def turn_upright(images: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Images [..., H, W, 3] stored in `orientation`, made upright; its own inverse."""
    if orientation in ("upright", "upside_down"):
        return np.ascontiguousarray(images[..., ::-1, :, :] if orientation == "upside_down" else images)
    turned = images[..., ::-1, ::-1, :] if orientation == "rotated_180" else images[..., :, ::-1, :]
    upright = np.empty_like(images, order="C")
    for channel in range(images.shape[-1]):  # four times as fast as copying all three at once
        upright[..., channel] = turned[..., channel]
    return upright
