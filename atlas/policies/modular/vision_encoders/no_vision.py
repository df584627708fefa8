"""A policy that looks at nothing: it acts on proprio, and on the instruction if it has a language encoder."""

from __future__ import annotations

import torch

from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.modular.vision_encoders.vision_contract import VisionEncoder


class NoVision(VisionEncoder):
    """Gives no tokens at all, [B, 0, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, images: torch.Tensor, language: LanguageTokens | None = None) -> torch.Tensor:
        """images float [B, 0, 3, H, W]: of no camera."""
        return images.new_zeros(images.shape[0], 0, self.dim)
