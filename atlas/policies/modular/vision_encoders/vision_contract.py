"""The contract of a modular policy's vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.pretrained_weights import FrozenWeights


class VisionEncoder(nn.Module):
    """`forward(images, language)`: images float [B, V, 3, H, W] in [0, 1] and LanguageTokens to tokens [B, N, dim]."""

    dim: int
    frozen: FrozenWeights | None = None  # what is neither trained nor saved; None if everything is
    copy_name = "vision.safetensors"  # the name of what `save_source` writes, in a policy's folder

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """See `Policy.blocks`."""
        return ()

    def finish(self, tokens: torch.Tensor) -> torch.Tensor:
        """The trained layers on top of the tokens from `forward` or from a feature cache: [B, N, dim] to the same.
        `fusion` reads the result."""
        return tokens

    def patch_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        """The patches among the tokens that `forward` returned: [B, V, rows, columns, dim]; for sections that say
        `gives_patches`."""
        raise NotImplementedError(f"{type(self).__name__} has no patches")

    def keypoints(self, images: torch.Tensor, language: LanguageTokens) -> torch.Tensor | None:
        """The places of its keypoints, as `Attention.points` has them: float32 [B, V, K, 3]; None where it has none."""
        return None

    def save_source(self, path: Path) -> None:
        """Write an unchanged copy of what `frozen` names, from which another encoder can read it."""
        raise NotImplementedError(f"{type(self).__name__} has nothing that is frozen")


class NoVision(VisionEncoder):
    """An encoder for a policy that acts on proprio and perhaps an instruction: no tokens, [B, 0, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, images: torch.Tensor, language: LanguageTokens | None = None) -> torch.Tensor:
        """images float [B, 0, 3, H, W]: of no camera."""
        return images.new_zeros(images.shape[0], 0, self.dim)
