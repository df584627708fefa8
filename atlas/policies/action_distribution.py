"""Random actions with their probability: what learning by reward asks of a policy.

Numbers here are scaled as the network gives them, a gripper from -1 (open) to 1 (closed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianActions:
    """Independent Gaussians over the numbers of a chunk; squashed, their hyperbolic tangents, which lie in (-1, 1)."""

    mean: torch.Tensor  # float [B, H, A], before squashing
    log_std: torch.Tensor  # float [B, H, A]
    squashed: bool

    @property
    def most_likely(self) -> torch.Tensor:
        """[B, H, A]; squashed, that of the median."""
        return torch.tanh(self.mean) if self.squashed else self.mean

    def sample(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions [B, H, A] that gradients flow through (reparametrised), and the logarithm of their density [B]."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        raw = self.mean + self.log_std.exp() * noise
        log_prob = -0.5 * noise.square() - self.log_std - _HALF_LOG_2PI
        return self._bounded(raw, log_prob)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """The logarithm of the density [B] of a chunk [B, H, A]: the sum over its numbers."""
        # Where an action lies at the edge, as clipped ones do, its inverse would be infinite.
        raw = torch.atanh(actions.clamp(-1 + 1e-6, 1 - 1e-6)) if self.squashed else actions
        noise = (raw - self.mean) * (-self.log_std).exp()
        return self._bounded(raw, -0.5 * noise.square() - self.log_std - _HALF_LOG_2PI)[1]

    @property
    def entropy(self) -> torch.Tensor:
        """[B], of the Gaussians before squashing."""
        return (0.5 + _HALF_LOG_2PI + self.log_std).flatten(1).sum(1)

    def _bounded(self, raw: torch.Tensor, log_prob: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.squashed:
            return raw, log_prob.flatten(1).sum(1)
        # log(1 - tanh(x)^2) in a form that does not lose all its digits far from 0 (Haarnoja et al., 2018, appendix C)
        log_prob = log_prob - 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return torch.tanh(raw), log_prob.flatten(1).sum(1)
