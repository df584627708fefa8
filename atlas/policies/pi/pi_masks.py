"""Attention masks and positions of the tokens in pi's sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch

from atlas.policies.published.flow_pieces import look_ahead_mask, positions_of


class Tokens(NamedTuple):
    """A transformer's input tokens."""

    embeddings: torch.Tensor  # [B, N, D]
    valid: torch.Tensor  # bool [B, N], false for padding and for missing cameras
    begins: torch.Tensor  # bool [B, N], true where a new block begins; earlier blocks do not see it


def suffix_mask(prefix_valid: torch.Tensor, valid: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """bool [B, N, M + N]: to which of the M prefix tokens and of themselves the N suffix tokens may attend."""
    of_prefix = prefix_valid[:, None, :] & valid[:, :, None]
    return torch.cat([of_prefix, look_ahead_mask(valid, begins)], dim=2)


def suffix_positions(prefix_valid: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Positions int64 [B, N] that continue those of a prefix, bool [B, M]."""
    return prefix_valid.long().sum(dim=1, keepdim=True) + positions_of(valid)


def never_blind(mask: torch.Tensor) -> torch.Tensor:
    """The mask bool [B, N, M], M >= N, with each token allowed to attend to itself.

    Nothing reads the output of an invalid token, but with some kernels a token that attends to nothing gives NaN, and
    makes every gradient NaN.
    """
    n, m = mask.shape[-2:]
    own = torch.ones(n, n, dtype=torch.bool, device=mask.device).tril().triu()
    return mask | torch.cat([own.new_zeros(n, m - n), own], dim=1)
