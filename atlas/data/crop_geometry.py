"""From camera images to what the network sees: the one function that training data and rollouts go through."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


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
