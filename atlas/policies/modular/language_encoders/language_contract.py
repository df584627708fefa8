"""The contract of a modular policy's language encoder: an instruction becomes tokens for vision and fusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

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
