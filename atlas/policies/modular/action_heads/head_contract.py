"""The contract of a modular policy's action head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from atlas.types import LossTerms


class ActionHead(nn.Module):
    """A head leads from fused tokens [B, H, dim] to actions, and owns the loss. Actions are normalised on both sides of
    it, and a gripper goes from -1 (open) to 1 (closed).

    If a head needs random numbers, they follow from `key`, int64 [B], one per sample; in `sample` a generator takes
    precedence over the key.
    """

    blocks: Sequence[nn.Module] | nn.ModuleList  # see `Policy.blocks`; () if it has none

    @abstractmethod
    def forward(
        self, fused: torch.Tensor, actions: torch.Tensor, is_pad: torch.Tensor, key: torch.Tensor | None = None
    ) -> LossTerms:
        """actions [B, H, A], is_pad bool [B, H]; means over the valid steps."""

    @abstractmethod
    def sample(
        self, fused: torch.Tensor, key: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Normalised actions float32 [B, H, A]."""


@runtime_checkable
class GenerativeHead(Protocol):
    """A head that makes actions of noise."""

    noise_dim: int  # numbers per action

    def carry(self, noise: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
        """Normalised actions float32 [B, H, A] from standard normal noise [B, H, noise_dim]."""
        ...

    def sample_following(
        self, fused: torch.Tensor, rest: torch.Tensor, delay: int, key: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `ActionHead.sample`; rest and delay: see `FollowsChunks`, normalised."""
        ...
