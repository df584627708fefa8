"""The contract of a modular policy's language encoder, which makes an instruction tokens for vision and fusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.pretrained_weights import FrozenWeights


class LanguageEncoder(nn.Module):
    """`forward(instructions)`: B instructions to LanguageTokens of `dim` numbers each."""

    dim: int
    frozen: FrozenWeights | None = None  # what is neither trained nor saved; None if it is trained, or was not read
    copy_name = "language"  # the name of what `save_source` writes, in a policy's folder

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """See `Policy.blocks`."""
        return ()

    def save_source(self, folder: Path) -> None:
        """Write a copy of what `frozen` names into a folder, from which another encoder can read it."""
        raise NotImplementedError(f"{type(self).__name__} has nothing that is frozen")


class NoLanguage(LanguageEncoder):
    """An encoder for a world with a single task: one token of a single zero, whatever the instruction."""

    dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("token", torch.zeros(1, 1, self.dim), persistent=False)
        self.register_buffer("is_pad", torch.zeros(1, 1, dtype=torch.bool), persistent=False)

    token: torch.Tensor
    is_pad: torch.Tensor

    def forward(self, instructions: Sequence[str]) -> LanguageTokens:
        count = len(instructions)
        return LanguageTokens(self.token.expand(count, -1, -1), self.is_pad.expand(count, -1))
