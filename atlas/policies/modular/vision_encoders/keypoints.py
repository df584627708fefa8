"""A small convolutional vision encoder whose last maps become keypoints: the positions of things, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.modular.unused_biases import hold_bias
from atlas.policies.modular.vision_encoders.vision_contract import VisionEncoder
from atlas.policies.modular.vision_encoders.vision_sections import KeypointVisionConfig
from atlas.policies.pretrained_weights import without_autocast

_MAP_GAIN = 3.0  # the norm of a map's weights when training begins


class SpatialSoftmax(nn.Module):
    """The expected position of each map's activation (Levine et al., 2016, section 5.1), in [-1, 1].

    Computed in float32 also under autocast, like the first layer on positions: bfloat16 keeps 8 bits of a position.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """[n, K, h, w] to float32 [n, K, 2] (x, y)."""
        h, w = maps.shape[2:]
        weights = maps.float().flatten(2).softmax(-1)  # [n, K, h*w]
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, h, device=maps.device), torch.linspace(-1, 1, w, device=maps.device), indexing="ij"
        )
        with without_autocast(maps.device):
            return weights @ torch.stack([x.flatten(), y.flatten()], dim=-1)


class KeypointStem(nn.Module):
    """Convolutions over one view, conditioned on the instruction (FiLM), down to K maps of 1/4 size."""

    def __init__(self, width: int, keypoints: int, language_dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 5, stride=2, padding=2)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.third = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.fourth = nn.Conv2d(2 * width, keypoints, 3, padding=1)
        assert self.fourth.bias is not None
        hold_bias(self.fourth.bias)
        # With torch's default weights the maps are so flat that their softmax is nearly uniform: all keypoints stay at
        # the centre, and with some seeds they never learn to move. These maps differ by about 2 between places.
        nn.init.normal_(self.fourth.weight, std=_MAP_GAIN / math.sqrt(self.fourth.weight[0].numel()))
        self.norms = nn.ModuleList([nn.GroupNorm(8, width), nn.GroupNorm(8, 2 * width), nn.GroupNorm(8, 2 * width)])
        self.film = nn.Linear(language_dim, 2 * 2 * width)
        nn.init.normal_(self.film.weight, std=0.01)
        nn.init.zeros_(self.film.bias)

    def forward(self, images: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
        """images [n, 3, H, W] in [0, 1], language [n, dim] to maps [n, K, H/4, W/4], for `SpatialSoftmax`."""
        x = F.relu_(self.norms[0](self.first(2 * images - 1)))
        x = F.relu_(self.norms[1](self.second(x)))
        scale, shift = self.film(language)[:, :, None, None].chunk(2, dim=1)
        x = F.relu_(torch.addcmul(shift, self.norms[2](self.third(x)), 1 + scale))
        out: torch.Tensor = self.fourth(x)
        return out


_STRIDE = 4  # pixels between two places of the stem's maps, whose first is the first pixel's


def places_in_image(maps: torch.Tensor, size: int) -> torch.Tensor:
    """The stem's maps [n, K, h, w] of images of `size` pixels as `Attention.points`: [n, K, 3].

    Certain is a keypoint whose map's weight lies in one place; the measure is the standard deviation, as a share of
    that of a flat map.
    """
    h, w = maps.shape[2:]
    weights = maps.float().flatten(2).softmax(-1)  # [n, K, h*w]
    y, x = torch.meshgrid(
        torch.arange(h, device=maps.device).float(), torch.arange(w, device=maps.device).float(), indexing="ij"
    )
    places = torch.stack([x.flatten(), y.flatten()], dim=-1)  # [h*w, 2]
    with without_autocast(maps.device):
        mean = weights @ places
        variance = (weights @ places**2 - mean**2).sum(-1).clamp(min=0)
    flat = (h * h + w * w - 2) / 12
    certainty = 1 - (variance / flat).sqrt().clamp(max=1)
    return torch.cat([(_STRIDE * mean + 0.5) / size, certainty[..., None]], dim=-1)


class KeypointVisionEncoder(VisionEncoder):
    """One token per view, made of its keypoints' positions; each view has its own convolutions."""

    def __init__(self, config: KeypointVisionConfig, views: int, dim: int, language_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.stems = nn.ModuleList([KeypointStem(config.width, config.keypoints, language_dim) for _ in range(views)])
        self.positions = nn.ModuleList([SpatialSoftmax() for _ in range(views)])
        self.project = nn.ModuleList([nn.Linear(2 * config.keypoints, dim) for _ in range(views)])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on CPUs

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.stems)

    def keypoints(self, images: torch.Tensor, language: LanguageTokens) -> torch.Tensor:
        summary, size = language.summary(), images.shape[-1]
        found = [places_in_image(stem(images[:, view], summary), size) for view, stem in enumerate(self.stems)]
        return torch.stack(found, dim=1)

    def forward(self, images: torch.Tensor, language: LanguageTokens) -> torch.Tensor:
        """images [B, V, 3, H, W] in [0, 1] to tokens [B, V, dim]."""
        images = images.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, images.shape[:2])
        summary = language.summary()
        places = [
            positions(stem(images[:, view], summary)).flatten(1)  # [B, 2K]
            for view, (stem, positions) in enumerate(zip(self.stems, self.positions, strict=True))
        ]
        with without_autocast(images.device):
            return torch.stack([project(p) for project, p in zip(self.project, places, strict=True)], dim=1)
