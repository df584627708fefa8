"""The vision encoders by name."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from atlas.config import KeypointVisionConfig, VGGTVisionConfig
from atlas.policy.keypoints import KeypointVisionEncoder
from atlas.policy.language import LanguageTokens


class VisionEncoder(Protocol):
    dim: int  # of its tokens

    def __call__(self, images: torch.Tensor, language: LanguageTokens) -> torch.Tensor:
        """images float [B, V, 3, H, W] in [0, 1] to tokens [B, N, dim]."""
        ...


def make_vision(
    config: KeypointVisionConfig | VGGTVisionConfig, views: int, image_size: int, dim: int, language_dim: int
) -> nn.Module:
    """The encoder that a config names; `dim` is a hint for encoders that can choose."""
    if isinstance(config, KeypointVisionConfig):
        return KeypointVisionEncoder(config, views, dim, language_dim)
    from atlas.policy.vggt_vision import VGGTVisionEncoder

    return VGGTVisionEncoder(config, views, image_size, language_dim)
