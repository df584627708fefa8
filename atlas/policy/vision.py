"""The vision encoders by name."""

from __future__ import annotations

from atlas.config import KeypointVisionConfig, VGGTVisionConfig
from atlas.policy.keypoints import KeypointVisionEncoder
from atlas.policy.vggt_vision import VGGTVisionEncoder


def make_vision(
    config: KeypointVisionConfig | VGGTVisionConfig, views: int, image_size: int, dim: int, language_dim: int
) -> KeypointVisionEncoder | VGGTVisionEncoder:
    """The encoder that a config names: images float [B, V, 3, H, W] in [0, 1] and LanguageTokens to tokens [B, N, dim].

    `dim` is what fusion would like; an encoder says in its own `dim` what it gives.
    """
    if isinstance(config, KeypointVisionConfig):
        return KeypointVisionEncoder(config, views, dim, language_dim)
    return VGGTVisionEncoder(config, views, image_size, language_dim)
