"""Random changes to training images, applied to the whole batch; each is a pure function of (seed, epoch, sample)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from atlas.config import AugmentConfig
from atlas.data.sampling.randomness import Stream, uniform
from atlas.types import Batch

_NUMBERS_A_VIEW = 5  # two shifts, brightness, contrast, saturation
_NUMBERS_A_CAMERA = 2  # zoom, turn


class Augmenter:
    """Shifts each view by some pixels, turns and zooms it (the border repeats), and changes its colours; one of several
    cameras is black in some samples."""

    def __init__(self, config: AugmentConfig, frames: int = 1) -> None:
        """frames: that a sample shows of each camera."""
        self._config, self._frames = config, frames

    def __call__(self, images: torch.Tensor, batch: Batch) -> torch.Tensor:
        """images float [B, V, 3, H, W] in [0, 1] of `batch`; the same shape and range."""
        assert batch.key is not None
        b, v, _, height, width = images.shape
        drawn = uniform(batch.key, Stream.AUGMENTATION, v * _NUMBERS_A_VIEW)
        numbers = (2 * drawn.view(b * v, _NUMBERS_A_VIEW) - 1).float()
        views = images.flatten(0, 1)  # [B*V, 3, H, W]
        views = self._shift(views, numbers[:, 0], numbers[:, 1])
        views = self._moved(views, batch.key, v // self._frames)
        views = self._colour(views, *numbers[:, 2:].unbind(1))
        return self._without_one(views.view(b, v, 3, height, width), batch.key)

    def _shift(self, views: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        n, _, height, width = views.shape
        most = round(self._config.shift * max(height, width))
        if most == 0:
            return views
        padded = F.pad(views, (most, most, most, most), mode="replicate")
        top = ((down + 1) / 2 * (2 * most + 1)).long().clamp(0, 2 * most)
        left = ((right + 1) / 2 * (2 * most + 1)).long().clamp(0, 2 * most)
        if views.device.type == "cpu":  # slices copy whole rows, which is several times faster on a CPU
            cuts = zip(padded, top.tolist(), left.tolist(), strict=True)
            return torch.stack([view[:, y : y + height, x : x + width] for view, y, x in cuts])
        rows = top[:, None] + torch.arange(height, device=views.device)  # [n, H]
        columns = left[:, None] + torch.arange(width, device=views.device)  # [n, W]
        picked = torch.arange(n, device=views.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _moved(self, views: torch.Tensor, key: torch.Tensor, cameras: int) -> torch.Tensor:
        """Zoomed and turned about their middles: [B * frames * cameras, 3, H, W], as before."""
        config = self._config
        if not (config.zoom or config.turn_deg):
            return views
        drawn = uniform(key, Stream.VIEWS, 2 + cameras * _NUMBERS_A_CAMERA)[:, 2:]
        drawn = 2 * drawn.view(-1, 1, cameras, _NUMBERS_A_CAMERA) - 1
        zoom, turn = drawn.expand(-1, self._frames, -1, -1).flatten(0, 2).float().unbind(1)  # [n] each
        scale, angle = 1 + config.zoom * zoom, torch.deg2rad(config.turn_deg * turn)
        height, width = views.shape[2:]
        across, along = scale * angle.cos(), scale * angle.sin()
        zero = torch.zeros_like(scale)
        rows = (across, -along * height / width, zero), (along * width / height, across, zero)
        maps = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # [n, 2, 3]
        grid = F.affine_grid(maps, list(views.shape), align_corners=False)
        return F.grid_sample(views, grid, padding_mode="border", align_corners=False)

    def _without_one(self, images: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """images [B, frames * cameras, 3, H, W], of which some samples have all frames of one camera black."""
        b, views = images.shape[:2]
        cameras = views // self._frames
        if not self._config.drop_view or cameras == 1:
            return images
        drawn = uniform(key, Stream.VIEWS, 2)
        which = (drawn[:, 1] * cameras).long()
        gone = (drawn[:, :1] < self._config.drop_view) & (torch.arange(cameras, device=which.device) == which[:, None])
        kept = (~gone).to(images.dtype).repeat(1, self._frames)
        return images * kept.view(b, views, 1, 1, 1)

    def _colour(
        self, views: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
    ) -> torch.Tensor:
        """Scales brightness, then each pixel's distance from its grey value, then from the view's mean grey.

        The three together are one affine map of the colours, x -> matrix @ x + offset, applied in one pass.
        """
        config = self._config
        if not (config.brightness or config.contrast or config.saturation):
            return views
        n, _, height, width = views.shape
        bright, sharp, vivid = (
            (1 + strength * amount).view(n, 1, 1)
            for strength, amount in (
                (config.brightness, brightness),
                (config.contrast, contrast),
                (config.saturation, saturation),
            )
        )
        luma = _luma(views.device)
        grey = luma.expand(3, 3)  # each colour becomes the grey value
        identity = torch.eye(3, device=views.device)
        matrix = sharp * bright * (vivid * identity + (1 - vivid) * grey)  # [n, 3, 3]
        mean = (views.mean((2, 3)) @ luma).view(n, 1, 1)
        offset = (1 - sharp) * bright * mean
        return torch.baddbmm(offset, matrix, views.flatten(2)).clamp_(0, 1).view(n, 3, height, width)


@lru_cache(maxsize=32)
def _luma(device: torch.device) -> torch.Tensor:
    """The weight of each colour in the grey value (ITU-R BT.601): float32 [3]."""
    with torch.inference_mode(False):  # a tensor first made in inference mode could not be used in training
        return torch.tensor([0.299, 0.587, 0.114], device=device)
