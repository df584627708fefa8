"""From a source's images to upright ones, and from those to what the network sees: what training and rollouts share."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

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


def fit_images(images: np.ndarray, size: int) -> torch.Tensor:
    """Upright images uint8 [n, H, W, 3] to uint8 [n, 3, size, size].

    The larger side is cropped to a centred square, which is then resized (bilinear, antialiased). Images that already
    have the size are returned unchanged, as a view of the same memory.
    """
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(images[:, top : top + side, left : left + side]))
    square = square.permute(0, 3, 1, 2)  # [n, 3, side, side]
    if side == size:
        return square
    return F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)
