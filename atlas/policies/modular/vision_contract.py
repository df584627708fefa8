"""The vision encoders by name."""

from __future__ import annotations

from pathlib import Path

from atlas.config import KeypointVisionConfig, PretrainedVGGTConfig, VGGTVisionConfig
from atlas.policies.modular.keypoints import KeypointVisionEncoder
from atlas.policies.modular.vggt_backbone import PretrainedVGGTEncoder
from atlas.policies.modular.vggt_vision import VGGTVisionEncoder

VisionEncoder = KeypointVisionEncoder | VGGTVisionEncoder | PretrainedVGGTEncoder


def make_vision(
    config: KeypointVisionConfig | VGGTVisionConfig | PretrainedVGGTConfig,
    views: int,
    image_size: int,
    dim: int,
    language_dim: int,
    source: Path | None = None,
    read_weights: bool = True,
) -> VisionEncoder:
    """The encoder that a config names: images float [B, V, 3, H, W] in [0, 1] and LanguageTokens to tokens [B, N, dim].

    `dim` is what fusion would like; an encoder says in its own `dim` what it gives. source: where to read pretrained
    weights in place of where the config says; without `read_weights` they are left as they are made.
    """
    if isinstance(config, PretrainedVGGTConfig):
        return PretrainedVGGTEncoder(config, source, read_weights)
    if isinstance(config, VGGTVisionConfig):
        return VGGTVisionEncoder(config, views, image_size, language_dim)
    return KeypointVisionEncoder(config, views, dim, language_dim)
