"""VGGT as a policy's vision encoder: its frame-wise and global blocks over patch tokens or keypoint tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.modular.vision_encoders.keypoints import KeypointStem, SpatialSoftmax, places_in_image
from atlas.policies.modular.vision_encoders.vision_contract import VisionEncoder
from atlas.policies.modular.vision_encoders.vision_sections import VGGTVisionConfig
from atlas.policies.pretrained_weights import without_autocast
from atlas.policies.vggt import VGGTAggregator, VGGTConfig

_LAYER_SCALE = 0.5  # for blocks trained from scratch; the published value is meant for deep pretrained ones


class VGGTVisionEncoder(VisionEncoder):
    """Tokens of all views that have attended to each other, [B, N, 2C]; registers and camera tokens included.

    The stems `conv` and `patch` cut each view into a grid of tokens. The stem `keypoints` finds keypoints in each view,
    conditioned on the instruction, and makes a token of each group of them: its content is the keypoints' positions,
    and its place in the rotary embedding is their mean position.
    """

    def __init__(self, config: VGGTVisionConfig, views: int, image_size: int, language_dim: int) -> None:
        super().__init__()
        keypoints = config.stem == "keypoints"
        self.dim = 2 * config.embed_dim
        self._views = views
        self._patches_a_side = image_size // config.patch_size
        self._image_size, self._patch_size = image_size, config.patch_size
        self.aggregator = VGGTAggregator(
            VGGTConfig(
                embed_dim=config.embed_dim,
                depth=config.depth,
                num_heads=config.num_heads,
                num_register_tokens=config.num_register_tokens,
                img_size=image_size,
                patch_size=config.patch_size,
                mlp_ratio=config.mlp_ratio,
                rope_freq=config.rope_freq,
                stem="none" if keypoints else config.stem,  # type: ignore[arg-type]
                layer_scale=_LAYER_SCALE,
            )
        )
        self.stems = None
        if keypoints:
            self.stems = nn.ModuleList([_KeypointTokens(config, language_dim) for _ in range(views)])
            self.stems.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [*(self.stems or ()), *self.aggregator.blocks]

    def forward(self, images: torch.Tensor, language: LanguageTokens) -> torch.Tensor:
        """images [B, V, 3, H, W] in [0, 1] to tokens [B, V * (1 + R + N), 2C]."""
        if self.stems is None:
            return self.aggregator(images)[0].flatten(1, 2)
        summary = language.summary()
        found = [stem(images[:, view], summary) for view, stem in enumerate(self.stems)]
        tokens = torch.stack([t for t, _ in found], dim=1)  # [B, V, groups, C]
        places = torch.stack([p for _, p in found], dim=1)  # [B, V, groups, 2] in [-1, 1]
        positions = (places + 1) / 2 * (self._image_size / self._patch_size - 1)
        return self.aggregator.forward_tokens(tokens, positions=positions)[0].flatten(1, 2)

    def keypoints(self, images: torch.Tensor, language: LanguageTokens) -> torch.Tensor | None:
        if self.stems is None:
            return None
        summary, size = language.summary(), images.shape[-1]
        stems: Any = self.stems
        maps = [stem.maps(images[:, view], summary) for view, stem in enumerate(stems)]
        return torch.stack([places_in_image(each, size) for each in maps], dim=1)

    def patch_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        """The patches among the tokens from `forward`: [B, V, rows, columns, 2C]. Not for the keypoint stem."""
        assert self.stems is None
        by_view = tokens.unflatten(1, (self._views, -1))[:, :, self.aggregator.config.num_special_tokens :]
        return by_view.unflatten(2, (self._patches_a_side, self._patches_a_side))


class _KeypointTokens(nn.Module):
    """One view to tokens [n, groups, C] and their places (row, column) in [-1, 1], [n, groups, 2]."""

    def __init__(self, config: VGGTVisionConfig, language_dim: int) -> None:
        super().__init__()
        self._groups = config.keypoint_groups
        self.maps = KeypointStem(config.stem_width, config.keypoints, language_dim)
        self.softmax = SpatialSoftmax()
        size = config.keypoints // config.keypoint_groups
        self.weight = nn.Parameter(torch.randn(self._groups, 2 * size, config.embed_dim) * (2 * size) ** -0.5)
        self.bias = nn.Parameter(torch.randn(self._groups, config.embed_dim) * 0.02)

    def forward(self, images: torch.Tensor, language: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = self.softmax(self.maps(images, language)).unflatten(1, (self._groups, -1))  # [n, groups, size, (x, y)]
        with without_autocast(points.device):  # sharded weights may arrive in bfloat16
            tokens = torch.einsum("ngi,gic->ngc", points.flatten(2), self.weight.float()) + self.bias
        return tokens, points.mean(2).flip(-1)
