"""Which token of pi's sequence may look at which, and where each stands."""

from __future__ import annotations

from typing import NamedTuple

import torch

from atlas.policies.published.flow_pieces import look_ahead_mask, positions_of


class Tokens(NamedTuple):
    """Tokens on their way into a transformer."""

    embeddings: torch.Tensor  # [B, N, D]
    valid: torch.Tensor  # bool [B, N], false where padded or of a camera that is not there
    begins: torch.Tensor  # bool [B, N], true where a new block begins, which the blocks before it do not see


def suffix_mask(prefix_valid: torch.Tensor, valid: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """bool [B, N, M + N], which of a prefix of M and of themselves N tokens of a suffix may look at."""
    of_prefix = prefix_valid[:, None, :] & valid[:, :, None]
    return torch.cat([of_prefix, look_ahead_mask(valid, begins)], dim=2)


def suffix_positions(prefix_valid: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """int64 [B, N], which go on where a prefix bool [B, M] ends."""
    return prefix_valid.long().sum(dim=1, keepdim=True) + positions_of(valid)


def never_blind(mask: torch.Tensor) -> torch.Tensor:
    """A mask bool [B, N, M] with M >= N, in which each token sees itself at least.

    What a token that is not valid makes of that is read by nobody; one that sees nothing would make NaN of it with some
    kernels, and of every gradient on the way back.
    """
    n, m = mask.shape[-2:]
    own = torch.ones(n, n, dtype=torch.bool, device=mask.device).tril().triu()
    return mask | torch.cat([own.new_zeros(n, m - n), own], dim=1)
