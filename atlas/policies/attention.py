"""The places that a policy looks at: an optional ability of some types, drawn into films of rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from atlas.types import Batch


@dataclass(frozen=True)
class Attention:
    """The places in its images [B, V, 3, H, W] from which a policy's actions follow: points, maps, or both.

    points: float32 [B, V, K, 3], each x and y as shares of the image's width and height, and its certainty, from 0
    (anywhere) to 1 (a single place). maps: float32 [B, V, h, w], the non-negative weight of each patch.
    """

    points: torch.Tensor | None = None
    maps: torch.Tensor | None = None


@runtime_checkable
class ShowsAttention(Protocol):
    """A policy that can show where it looks."""

    def attention(self, batch: Batch) -> Attention | None:
        """Its attention for each sample, without gradients; None where its parts cannot show it."""
        ...
