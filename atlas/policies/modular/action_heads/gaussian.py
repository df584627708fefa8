"""The Gaussian head: the whole chunk at once, each number with a deviation, so that a policy can try things out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from atlas.policies.action_distribution import GaussianActions
from atlas.policies.modular.action_heads.action_parts import ActionParts
from atlas.policies.modular.action_heads.head_contract import ActionHead
from atlas.policies.modular.parts import GaussianHeadConfig
from atlas.types import ActionSpec, LossTerms


class GaussianHead(ActionHead):
    """A linear map from each fused query to the mean of all numbers, grippers among them, and to their deviation where
    that follows from the state. Imitation draws the mean to the recorded actions; the deviation is left to learning by
    reward."""

    blocks = ()

    def __init__(self, config: GaussianHeadConfig, dim: int, spec: ActionSpec) -> None:
        super().__init__()
        self._config, self.parts = config, ActionParts(spec)
        self.mean = nn.Linear(dim, spec.dim)
        nn.init.orthogonal_(self.mean.weight, 0.01)  # it begins near the middle of the actions, whatever it sees
        nn.init.zeros_(self.mean.bias)
        self.log_std = nn.Linear(dim, spec.dim) if config.deviation == "state" else None
        self.free_log_std = nn.Parameter(torch.full((spec.dim,), config.log_std)) if self.log_std is None else None

    def distribution(self, fused: torch.Tensor) -> GaussianActions:
        """The distribution for fused [B, H, dim]."""
        mean = self.mean(fused).float()
        low, high = self._config.lowest, self._config.highest
        if self.log_std is not None:
            log_std = low + 0.5 * (high - low) * (1 + torch.tanh(self.log_std(fused).float()))
        else:
            assert self.free_log_std is not None
            log_std = self.free_log_std.clamp(low, high).expand_as(mean)
        return GaussianActions(mean, log_std, self._config.squashed)

    def forward(
        self, fused: torch.Tensor, actions: torch.Tensor, is_pad: torch.Tensor, key: torch.Tensor | None = None
    ) -> LossTerms:
        """fused [B, H, dim], actions [B, H, A], is_pad bool [B, H]; means over the valid steps. Nothing is random."""
        pose, grippers = self.parts.split(F.smooth_l1_loss(self.sample(fused), actions, beta=0.1, reduction="none"))
        return self.parts.losses(pose, grippers if grippers.shape[-1] else None, is_pad, self._config)

    def sample(
        self, fused: torch.Tensor, key: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """The most likely normalised actions float32 [B, H, A]; who wants to try others asks for the distribution."""
        return self.distribution(fused).most_likely
