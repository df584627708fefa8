"""The regression head: the whole chunk at once, the pose as numbers and the gripper as a logit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from atlas.policies.modular.head_contract import ActionHead
from atlas.policies.modular.parts import RegressionHeadConfig
from atlas.types import ActionSpec, LossTerms


class RegressionHead(ActionHead):
    """Two linear maps from each fused query; owns the loss. Actions here are normalised, the gripper is in ±1."""

    blocks = ()

    def __init__(self, config: RegressionHeadConfig, dim: int, spec: ActionSpec) -> None:
        super().__init__()
        self._config, self._spec = config, spec
        self.pose = nn.Linear(dim, spec.pose_dim)
        self.gripper = nn.Linear(dim, 1)

    def forward(
        self, fused: torch.Tensor, actions: torch.Tensor, is_pad: torch.Tensor, key: torch.Tensor | None = None
    ) -> LossTerms:
        """fused [B, H, dim], actions [B, H, A], is_pad bool [B, H]; means over the steps that are there.

        Nothing here is random: the key is not used, nor are `sample`'s key and generator.
        """
        valid = (~is_pad).float()
        n_valid = valid.sum()
        pose = self._pose_errors(self.pose(fused).float(), actions[..., self._spec.pose]).mean(-1)
        label = (actions[..., self._spec.gripper] > 0).float()
        logit = self.gripper(fused).float().squeeze(-1)
        gripper = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
        pose_loss = (pose * valid).sum() / n_valid.clamp(min=1)
        gripper_loss = (gripper * valid).sum() / n_valid.clamp(min=1)
        loss = self._config.pose_weight * pose_loss + self._config.gripper_weight * gripper_loss
        return LossTerms(loss, pose_loss, gripper_loss, n_valid)

    def sample(
        self, fused: torch.Tensor, key: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Normalised actions float32 [B, H, A]; the gripper is 2 P(close) - 1."""
        actions = fused.new_zeros(*fused.shape[:2], self._spec.dim, dtype=torch.float32)
        actions[..., self._spec.pose] = self.pose(fused).float()
        actions[..., self._spec.gripper] = 2 * torch.sigmoid(self.gripper(fused).float().squeeze(-1)) - 1
        return actions

    def _pose_errors(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self._config.pose_loss == "l1":
            return (predicted - target).abs()
        if self._config.pose_loss == "mse":
            return (predicted - target).square()
        return F.smooth_l1_loss(predicted, target, reduction="none")
