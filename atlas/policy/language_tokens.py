"""What a language encoder gives: a row of tokens for each instruction, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class LanguageTokens(NamedTuple):
    tokens: torch.Tensor  # float32 [B, L, dim]
    is_pad: torch.Tensor  # bool [B, L], true where there is no token

    def summary(self) -> torch.Tensor:
        """Mean over the tokens that are there, [B, dim]."""
        present = (~self.is_pad).unsqueeze(-1).to(self.tokens.dtype)
        return (self.tokens * present).sum(1) / present.sum(1)


def distinct(instructions: Sequence[str]) -> tuple[list[str], list[int]]:
    """The different ones of B instructions, and which of them each of the B is."""
    places = {text: place for place, text in enumerate(dict.fromkeys(instructions))}
    return list(places), [places[text] for text in instructions]


def pad_rows(rows: Sequence[torch.Tensor], value: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [l, ...] of different lengths as one tensor [N, L, ...] filled up with `value`, and is_pad bool [N, L]."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) >= lengths.unsqueeze(1)
