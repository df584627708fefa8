"""A policy that is told nothing, for a world with a single task."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from atlas.policies.modular.language_encoders.language_contract import LanguageEncoder
from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens


class NoLanguage(LanguageEncoder):
    """One token of a single zero, whatever the instruction."""

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
