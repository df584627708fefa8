"""Where a policy looks: an optional ability of some types, drawn into films of rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from atlas.types import Batch


@dataclass(frozen=True)
class Attention:
    """What of its images [B, V, 3, H, W] a policy's actions follow from: points, a map, or both.

    points: float32 [B, V, K, 3], each x and y as shares of the image's width and height, and how certain it is, from 0
    (anywhere) to 1 (a single place). maps: float32 [B, V, h, w], the weight of each patch, not negative.
    """

    points: torch.Tensor | None = None
    maps: torch.Tensor | None = None


@runtime_checkable
class ShowsAttention(Protocol):
    """Can say where it looks."""

    def attention(self, batch: Batch) -> Attention | None:
        """For each sample, without gradients. None where the parts that it is made of do not tell."""
        ...
