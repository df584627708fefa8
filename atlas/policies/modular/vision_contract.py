"""What a vision encoder of a modular policy is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from atlas.policies.pretrained_weights import FrozenWeights


class VisionEncoder(nn.Module):
    """`forward(images, language)`: images float [B, V, 3, H, W] in [0, 1] and LanguageTokens to tokens [B, N, dim]."""

    dim: int
    frozen: FrozenWeights | None = None  # what is neither trained nor saved; None where all of it is
    copy_name = "vision.safetensors"  # of what `save_source` writes, in a policy's folder

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """See `Policy.blocks`."""
        return ()

    def finish(self, tokens: torch.Tensor) -> torch.Tensor:
        """What is trained on top of the tokens that `forward` gives, or a feature cache holds: [B, N, dim] to the same.
        `fusion` reads what comes out."""
        return tokens

    def patch_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        """The patches among the tokens that `forward` gave: [B, V, rows, columns, dim]; for sections that say
        `gives_patches`."""
        raise NotImplementedError(f"{type(self).__name__} has no patches")

    def save_source(self, path: Path) -> None:
        """Write an unchanged copy of what `frozen` names, from which another encoder can read it."""
        raise NotImplementedError(f"{type(self).__name__} has nothing that is frozen")
