"""The view of an upright picture that a network is shown: a centred square, or, where published policies were shown
that, the whole picture with its proportions kept, in a border.

The border belongs to the processor of such a policy: data workers, rollouts and servers hand pictures on by
`gather_views`, and the policy fits what has not been fitted yet. Pictures stay uint8 and of their own size as long as
that is possible, which costs workers nothing and keeps the numbers exact: a resized picture is no whole number of
levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

Placing = Literal["right_bottom", "centre"]  # of the picture in its border
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class ImageFit:
    """The larger ratio becomes 1, new sides are rounded down to whole pixels; bilinear, without aligned corners."""

    height: int
    width: int
    placing: Placing  # centre: an odd pixel goes to the right and the bottom
    border: float = 0.0  # of pictures in [0, 1]
    antialias: bool = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures float [..., 3, H, W] in [0, 1] to [..., 3, height, width]; those of that size are unchanged."""
        height, width = images.shape[-2:]
        if (height, width) == (self.height, self.width):
            return images
        ratio = max(width / self.width, height / self.height)
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        flat = images.reshape(-1, *images.shape[-3:])
        resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=self.antialias)
        down, right = self.height - size[0], self.width - size[1]
        top, left = (down, right) if self.placing == "right_bottom" else (down // 2, right // 2)
        # A sum of weights may exceed 1 by a rounding.
        fitted = F.pad(resized.clamp(0, 1), (left, right - left, top, down - top), value=self.border)
        return fitted.view(*images.shape[:-2], self.height, self.width)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageFit:
        """The inverse of `to_dict`. Raises TypeError, ValueError for any other form."""
        found = cls(**values)
        for side in (found.height, found.width):
            if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= LARGEST_SIDE:
                raise ValueError(f"a side of the fitted images is {side!r}, expected pixels up to {LARGEST_SIDE}")
        if found.placing not in get_args(Placing) or not isinstance(found.antialias, bool):
            raise ValueError(f"images are placed {found.placing!r}, expected one of {', '.join(get_args(Placing))}")
        if not isinstance(found.border, int | float) or isinstance(found.border, bool) or not 0 <= found.border <= 1:
            raise ValueError(f"the border of fitted images is {found.border!r}, expected a number from 0 to 1")
        return found


@dataclass(frozen=True)
class ViewForm:
    """The common form in which the pictures of some cameras are passed on."""

    height: int
    width: int
    fit: ImageFit | None  # None: cropped squares

    @classmethod
    def of(cls, image_size: int, fit: ImageFit | None, sizes: Iterable[tuple[int, int]]) -> ViewForm:
        """sizes: (height, width) of all pictures. With a fit they are passed on unchanged if all have one size;
        otherwise each is fitted, in float32."""
        if fit is None:
            return cls(image_size, image_size, None)
        found = set(sizes)
        return cls(*(next(iter(found)) if len(found) == 1 else (fit.height, fit.width)), fit)

    def room(self, sizes: Iterable[tuple[int, int]]) -> torch.dtype:
        """The type of the pictures: uint8 unless some have to be resized here."""
        resized = self.fit is not None and any(size != (self.height, self.width) for size in sizes)
        return torch.float32 if resized else torch.uint8

    def __call__(self, images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """Upright pictures uint8 [n, H, W, 3] to [n, 3, height, width], uint8 or float32 in [0, 1]."""
        if self.fit is None:
            return fit_images(images, self.height)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        return pixels if dtype == torch.uint8 else self.fit(pixels.contiguous().float().div_(255))


def gather_views(views: Sequence[Sequence[np.ndarray]], image_size: int, fit: ImageFit | None) -> torch.Tensor:
    """Pictures uint8 [H, W, 3] of B samples with V cameras each as [B, V, 3, h, w], in the form of `ViewForm`."""
    sizes = {(image.shape[0], image.shape[1]) for sample in views for image in sample}
    form = ViewForm.of(image_size, fit, sizes)
    dtype = form.room(sizes)
    return torch.stack([torch.cat([form(image[None], dtype) for image in sample]) for sample in views])


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
