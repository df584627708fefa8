"""Random actions with their probability: what learning by reward asks of a policy.

Numbers here are scaled as the network gives them, a gripper from -1 (open) to 1 (closed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class ActionDistribution(Protocol):
    """Of chunks [B, H, A]."""

    @property
    def most_likely(self) -> torch.Tensor:
        """[B, H, A]."""
        ...

    def sample(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions [B, H, A], and the logarithm of their density [B]."""
        ...

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """The logarithm of the density [B] of a chunk [B, H, A], with gradients."""
        ...

    @property
    def entropy(self) -> torch.Tensor:
        """[B]."""
        ...

    def first(self, count: int) -> ActionDistribution:
        """Of the first `count` actions of each chunk, where the rest is not executed."""
        ...


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

    def first(self, count: int) -> GaussianActions:
        """See `ActionDistribution.first`."""
        return GaussianActions(self.mean[:, :count], self.log_std[:, :count], self.squashed)

    def _bounded(self, raw: torch.Tensor, log_prob: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.squashed:
            return raw, log_prob.flatten(1).sum(1)
        # log(1 - tanh(x)^2) in a form that does not lose all its digits far from 0 (Haarnoja et al., 2018, appendix C)
        log_prob = log_prob - 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return torch.tanh(raw), log_prob.flatten(1).sum(1)


@dataclass(frozen=True)
class Noise:
    """What is put on the pose of a policy that itself says one action and no other."""

    deviation: float  # of each number, scaled
    shared: float  # of the variance: one draw for all actions of a chunk, 0 to below 1


@dataclass(frozen=True)
class NoisyActions:
    """A pose with Gaussian noise around what the policy says, and binary grippers by their probability to close.

    Noise that is drawn for each action alone moves a hand less than its size says, so a share of its variance is common
    to all actions of a chunk. Of those H actions the density then has a closed form: along their mean the variance is
    deviation² (1 - shared + shared H), and across it deviation² (1 - shared).
    """

    pose: torch.Tensor  # float [B, H, P]
    gripper: torch.Tensor  # float [B, H, G], logits of closing
    pose_at: torch.Tensor  # int64 [P], the places of the pose's numbers in an action
    gripper_at: torch.Tensor  # int64 [G]
    noise: Noise

    @property
    def most_likely(self) -> torch.Tensor:
        return self._joined(self.pose, (self.gripper > 0).float())

    def sample(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ActionDistribution.sample`; no gradients flow through the grippers."""

        def normal(shape: torch.Size) -> torch.Tensor:
            return torch.empty(shape, device=self.pose.device).normal_(generator=generator)

        own, common = (1 - self.noise.shared) ** 0.5, self.noise.shared**0.5
        drawn = own * normal(self.pose.shape) + common * normal(self.pose[:, :1].shape)
        chance = torch.empty_like(self.gripper).uniform_(generator=generator)
        closed = (chance < torch.sigmoid(self.gripper)).float()
        actions = self._joined(self.pose + self.noise.deviation * drawn, closed)
        return actions, self.log_prob(actions)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """See `ActionDistribution.log_prob`."""
        off = (actions[..., self.pose_at] - self.pose) / self.noise.deviation  # [B, H, P]
        along, across = self._variances
        mean = off.mean(1, keepdim=True)
        squares = (off - mean).square().sum(1) / across + off.shape[1] * mean[:, 0].square() / along  # [B, P]
        found = -0.5 * squares.sum(1) - off.shape[2] * self._log_volume
        closed = (actions[..., self.gripper_at] > 0).float()
        return found - F.binary_cross_entropy_with_logits(self.gripper, closed, reduction="none").flatten(1).sum(1)

    @property
    def entropy(self) -> torch.Tensor:
        """[B], of the noise, which is the same for all, and of the grippers."""
        chance = torch.sigmoid(self.gripper)
        grippers = F.binary_cross_entropy_with_logits(self.gripper, chance, reduction="none").flatten(1).sum(1)
        length, numbers = self.pose.shape[1:]
        return grippers + numbers * (0.5 * length + self._log_volume)

    def first(self, count: int) -> NoisyActions:
        """See `ActionDistribution.first`."""
        return NoisyActions(self.pose[:, :count], self.gripper[:, :count], self.pose_at, self.gripper_at, self.noise)

    @property
    def _variances(self) -> tuple[float, float]:
        """Along the mean of a number's H values and across it, where the deviation is 1."""
        shared = self.noise.shared
        return 1 - shared + shared * self.pose.shape[1], 1 - shared

    @property
    def _log_volume(self) -> float:
        """What the density of a number's H values is divided by, as a logarithm."""
        length, (along, across) = self.pose.shape[1], self._variances
        spread = length * math.log(self.noise.deviation) + 0.5 * (math.log(along) + (length - 1) * math.log(across))
        return spread + length * _HALF_LOG_2PI

    def _joined(self, pose: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        actions = pose.new_zeros(*pose.shape[:2], pose.shape[2] + closed.shape[2])
        actions[..., self.pose_at] = pose
        actions[..., self.gripper_at] = 2 * closed - 1
        return actions


@dataclass(frozen=True)
class CorrectedActions:
    """What a policy says, and one correction of it for all actions of the chunk, drawn at random."""

    base: torch.Tensor  # float [B, H, A]
    correction: GaussianActions  # of [B, 1, A], squashed: from -1 to 1
    scale: float  # the size of a correction of 1

    def sample(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions [B, H, A] that gradients flow through, and the logarithm of the density [B] of their correction."""
        drawn, log_prob = self.correction.sample(generator)
        return self.base + self.scale * drawn, log_prob

    @property
    def most_likely(self) -> torch.Tensor:
        """[B, H, A]."""
        return self.base + self.scale * self.correction.most_likely

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """The logarithm of the density [B] of the correction of chunks [B, H, A] that `sample` may give."""
        return self.correction.log_prob((actions - self.base).mean(1, keepdim=True) / self.scale)
