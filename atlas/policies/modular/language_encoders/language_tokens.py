"""The output of a language encoder: a row of tokens for each instruction, padded to the longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from atlas.system.device_copies import send


class LanguageTokens(NamedTuple):
    tokens: torch.Tensor  # float32 [B, L, dim]
    is_pad: torch.Tensor  # bool [B, L], true where there is no token

    def summary(self) -> torch.Tensor:
        """Mean over the tokens that are not padding, [B, dim]."""
        present = (~self.is_pad).unsqueeze(-1).to(self.tokens.dtype)
        return (self.tokens * present).sum(1) / present.sum(1)


def distinct(instructions: Sequence[str]) -> tuple[list[str], list[int]]:
    """The distinct texts among B instructions, and for each of the B which one it is."""
    places = {text: place for place, text in enumerate(dict.fromkeys(instructions))}
    return list(places), [places[text] for text in instructions]


def pad_and_send(
    rows: Sequence[torch.Tensor], places: Sequence[int], value: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CPU rows int64 [l] as one tensor [N, L] padded with `value`, is_pad bool [N, L], and `places` [B]: all on
    `device`, in one copy."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
    count, longest = padded.shape
    numbers = torch.tensor([*(len(row) for row in rows), *places])
    sent, lengths, there = send(torch.cat([padded.flatten(), numbers]), device).split(
        [padded.numel(), count, len(places)]
    )
    return sent.view(count, longest), torch.arange(longest, device=device) >= lengths.unsqueeze(1), there


class Remembered:
    """Tokens [l, dim] for each of some texts, one after another in one tensor on a device, from which the tokens of any
    batch are gathered at once."""

    def __init__(self, tokens: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """tokens: on the CPU, of one type, at least one."""
        ends = np.cumsum([1, *(len(rows) for rows in tokens.values())])  # the first row is for padding
        self._spans = {
            text: span for text, *span in zip(tokens, ends[:-1].tolist(), np.diff(ends).tolist(), strict=True)
        }
        some = next(iter(tokens.values()))
        self._rows = send(torch.cat([torch.zeros_like(some[:1]), *tokens.values()]), device)

    def of(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of B texts, padded with zeros to the longest: [B, L, dim], and is_pad bool [B, L]."""
        starts, lengths = np.array([self._spans[text] for text in texts]).T[:, :, None]
        steps = np.arange(lengths.max())
        rows = send(torch.from_numpy(np.where(steps < lengths, starts + steps, 0)), self._rows.device)
        return self._rows[rows], rows == 0
