"""Prepares images for an image-text model, on any device: resized, scaled by the model's numbers, cut into patches."""

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
}  # by PIL's numbers; the others are bicubic or similar
_TEMPORAL = 2  # frames in one of Qwen's patches; an image counts twice
_QWEN_PIXELS = (56 * 56, 28 * 28 * 1280)  # least and most pixels of an image, where a folder does not say


@dataclass(frozen=True)
class ImageRule:
    """The rule by which square images of some size are prepared for the model.

    The model sees each view whole. Of models that cut large images into tiles, only the tile with the whole image is
    used.
    """

    size: int  # the side of the image that the model sees, pixels
    resampling: str
    scale: PixelScale
    patch: int | None = None  # the side of a patch, pixels; None: the model takes whole images
    merge: int = 1  # the side, in patches, of the square that becomes one token

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], config: Any, family: Family, image_size: int, asked: int | None, name: str
    ) -> ImageRule:
        """The rule in the model's folder. image_size: the images' side, pixels; asked: the side that the model should
        see, None for its own rule. Raises InputError where the folder lacks a setting, or a size does not fit."""
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
        """Patches along a side, for a model that takes patches; 1 for others."""
        return self.size // self.patch if self.patch else 1

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """images float [n, 3, S, S] in [0, 1] to pixels [n, 3, size, size], or to patches [n, P, 2 * 3 * p * p]."""
        if images.shape[-1] != self.size:
            smooth = self.resampling != "nearest"
            images = F.interpolate(images, size=(self.size, self.size), mode=self.resampling, antialias=smooth)
            images = images.clamp(0, 1)  # bicubic interpolation overshoots
        pixels = self.scale.apply(images)
        return self._patches(pixels) if self.patch else pixels

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patches in Qwen's order: those of a token follow each other, and in each, the frames of a channel do."""
        assert self.patch is not None
        n, coarse = len(pixels), self.grid // self.merge
        cut = pixels.reshape(n, 3, coarse, self.merge, self.patch, coarse, self.merge, self.patch)
        ordered = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [n, row, column, row in it, column in it, 3, p, p]
        twice = ordered.unsqueeze(6).expand(*ordered.shape[:6], _TEMPORAL, *ordered.shape[6:])
        return twice.reshape(n, self.grid**2, -1)


def _square_size(settings: Mapping[str, Any], image_size: int, name: str) -> int:
    """The side in pixels, from `crop_size` or `size`; for models that cut images into tiles, the side of a tile."""
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
            f"{KEY}: {name} does not say which size of square images it takes: its preprocessor_config.json has the "
            f"size {size!r}. Set model.backbone.image_size."
        )
    return int(sides[0])


def _qwen_size(settings: Mapping[str, Any], side: int, unit: int) -> int:
    """The multiple of `unit` nearest to the images' own size, within the least and the most pixels of an image (as in
    transformers' `smart_resize`)."""
    size = settings.get("size") or {}
    least = settings.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge") or _QWEN_PIXELS[0]
    most = settings.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge") or _QWEN_PIXELS[1]
    near = round(side / unit) * unit
    if near * near > most:
        return max(unit, math.floor(math.sqrt(most) / unit) * unit)
    return near if near * near >= least else math.ceil(math.sqrt(least) / unit) * unit
