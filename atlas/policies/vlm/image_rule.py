"""Images as an image-text model takes them: in its size, scaled by its numbers, whole or as patches; on any device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from atlas.errors import InputError
from atlas.policies.modular.vision_encoders.huggingface_images import PixelScale
from atlas.policies.vlm.families import Family
from atlas.policies.vlm.vlm_section import BACKBONE_KEY as KEY

_RESAMPLING = {
    0: "nearest",
    2: "bilinear",
}  # by PIL's numbers; the others are cubic, or near it
_TEMPORAL = 2  # frames of a patch of Qwen's; an image is taken twice
_QWEN_PIXELS = (56 * 56, 28 * 28 * 1280)  # where a folder does not say the least and the most


@dataclass(frozen=True)
class ImageRule:
    """What becomes of square images of some size before the model sees them.

    Each view is seen whole, in one piece: of models that cut large images into tiles, the one tile that shows all.
    """

    size: int  # pixels a side, as the model sees it
    resampling: str
    scale: PixelScale
    patch: int | None = None  # pixels a side of a patch, where patches are what it takes
    merge: int = 1  # patches a side of a token

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], config: Any, family: Family, image_size: int, asked: int | None, name: str
    ) -> ImageRule:
        """From what the model's folder says. image_size: of the images; asked: what the model is to see, if not by its
        own rule. Raises InputError where the folder does not say enough, or a size does not fit."""
        scale = PixelScale.of(dict(settings), name, KEY)
        resampling = _RESAMPLING.get(settings.get("resample", 3), "bicubic")
        if family.layout == "square":
            return cls(asked or _square_size(settings, image_size, name), resampling, scale)
        patch = settings.get("patch_size", config.vision_config.patch_size)
        merge = settings.get("merge_size", config.vision_config.spatial_merge_size)
        unit = patch * merge
        if asked is not None and asked % unit:
            raise InputError(
                f"model.backbone.image_size is {asked}; for {name} it must be a multiple of {unit}, such as "
                f"{max(1, round(asked / unit)) * unit}."
            )
        return cls(asked or _qwen_size(settings, image_size, unit), resampling, scale, patch, merge)

    @property
    def grid(self) -> int:
        """Patches a side, where patches are what the model takes; else 1."""
        return self.size // self.patch if self.patch else 1

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """images float [n, 3, S, S] in [0, 1] to pixels [n, 3, size, size], or to patches [n, P, 2 * 3 * p * p]."""
        if images.shape[-1] != self.size:
            smooth = self.resampling != "nearest"
            images = F.interpolate(images, size=(self.size, self.size), mode=self.resampling, antialias=smooth)
            images = images.clamp(0, 1)  # cubic curves swing over
        pixels = self.scale.apply(images)
        return self._patches(pixels) if self.patch else pixels

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """In the order of Qwen's: the patches of a token follow each other, and each has every frame of a channel."""
        assert self.patch is not None
        n, coarse = len(pixels), self.grid // self.merge
        cut = pixels.reshape(n, 3, coarse, self.merge, self.patch, coarse, self.merge, self.patch)
        ordered = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [n, row, column, row in it, column in it, 3, p, p]
        twice = ordered.unsqueeze(6).expand(*ordered.shape[:6], _TEMPORAL, *ordered.shape[6:])
        return twice.reshape(n, self.grid**2, -1)


def _square_size(settings: Mapping[str, Any], image_size: int, name: str) -> int:
    """Pixels a side by `crop_size` or `size`; of models that cut images into tiles, of a tile."""
    if not settings.get("do_resize", True):
        return image_size
    tile = settings.get("max_image_size")
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    size = tile or crop or settings.get("size")
    if isinstance(size, Mapping):
        sides = [size[key] for key in ("height", "width", "shortest_edge", "longest_edge") if size.get(key)]
    else:
        sides = [size] if isinstance(size, int) else list(size or ())
    if not sides or len(set(sides)) > 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(
            f"{KEY}: {name} does not say in which size it takes square images: its preprocessor_config.json has the "
            f"size {size!r}. Set model.backbone.image_size."
        )
    return int(sides[0])


def _qwen_size(settings: Mapping[str, Any], side: int, unit: int) -> int:
    """The multiple of `unit` that is nearest to the images' own size, within the least and the most pixels of an image
    (as transformers' `smart_resize` has it)."""
    size = settings.get("size") or {}
    least = settings.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge") or _QWEN_PIXELS[0]
    most = settings.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge") or _QWEN_PIXELS[1]
    near = round(side / unit) * unit
    if near * near > most:
        return max(unit, math.floor(math.sqrt(most) / unit) * unit)
    return near if near * near >= least else math.ceil(math.sqrt(least) / unit) * unit
