"""The places that a policy looks at: an optional ability of some types, drawn into films of rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from atlas.policies.action_distribution import FlowActions
from atlas.policies.published.flow_pieces import draw_start
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


_GRID = 16  # patches a side


def by_gradient(actions: Callable[[Batch], torch.Tensor], batch: Batch) -> Attention:
    """For policies without weights that can be read off: how much the actions change with each patch of the images.

    A patch weighs what the gradient of the actions' sum of squares comes to in it, its absolute values added up over
    pixels and channels (Simonyan et al., 2014, "Deep Inside Convolutional Networks"). actions: scaled, [B, ...],
    differentiable in the images.
    """
    with torch.enable_grad():
        images = batch.unit_images().detach().requires_grad_()
        (gradient,) = torch.autograd.grad(actions(replace(batch, images=images)).float().square().sum(), images)
    pixels = gradient.abs().sum(2)  # [B, V, H, W]
    return Attention(maps=F.adaptive_avg_pool2d(pixels, min(_GRID, *pixels.shape[-2:])))


def after_one_step(flow: FlowActions, key: torch.Tensor | None) -> torch.Tensor:
    """The scaled actions [B, H, A] at the end of a single step from the noise of the samples' keys."""
    start = draw_start(flow.shape, key, None, flow.device)
    return flow.finish(start - flow.velocity(start, torch.ones(len(start), device=start.device)))
