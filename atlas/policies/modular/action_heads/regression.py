"""The regression head: the whole chunk at once, the pose as numbers and each gripper as a logit or a number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from atlas.errors import InputError
from atlas.policies.action_distribution import Noise, NoisyActions
from atlas.policies.modular.action_heads.action_parts import ActionParts
from atlas.policies.modular.action_heads.head_contract import ActionHead
from atlas.policies.modular.parts import RegressionHeadConfig
from atlas.types import ActionSpec, LossTerms


class RegressionHead(ActionHead):
    """A linear map from each fused query to the pose and one to the grippers, if there are any; owns the loss.

    Actions here are normalised: a gripper is -1 when open and +1 when closed.
    """

    blocks = ()

    def __init__(self, config: RegressionHeadConfig, dim: int, spec: ActionSpec) -> None:
        super().__init__()
        self._config, self._continuous = config, [group.continuous for _, group in spec.grippers]
        self.parts = ActionParts(spec)
        self.pose = nn.Linear(dim, len(spec.pose))
        self.gripper = nn.Linear(dim, len(spec.grippers)) if spec.grippers else None

    def forward(
        self, fused: torch.Tensor, actions: torch.Tensor, is_pad: torch.Tensor, key: torch.Tensor | None = None
    ) -> LossTerms:
        """fused [B, H, dim], actions [B, H, A], is_pad bool [B, H]; means over the valid steps.

        Nothing here is random: neither the key nor `sample`'s key and generator are used.
        """
        pose, grippers = self.parts.split(actions)
        pose_errors = self._errors(self.pose(fused).float(), pose)
        gripper_errors = self._gripper_errors(self.gripper(fused).float(), grippers) if self.gripper else None
        return self.parts.losses(pose_errors, gripper_errors, is_pad, self._config)

    def sample(
        self, fused: torch.Tensor, key: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Normalised actions float32 [B, H, A]; a binary gripper is 2 P(close) - 1."""
        pose = self.pose(fused).float()
        if self.gripper is None:
            return self.parts.join(pose, None)
        given = self.gripper(fused).float().unbind(-1)
        grippers = [
            value.clamp(-1, 1) if continuous else 2 * torch.sigmoid(value) - 1
            for value, continuous in zip(given, self._continuous, strict=True)
        ]
        return self.parts.join(pose, torch.stack(grippers, -1))

    def noisy(self, fused: torch.Tensor, noise: Noise) -> NoisyActions:
        """Noisy actions for fused [B, H, dim]. Raises InputError for a gripper that is not just open or closed."""
        if any(self._continuous):
            raise InputError(
                "The head regression says how far its gripper is closed, not how likely that is; learning by reward "
                "needs model.head.name=gaussian there."
            )
        pose = self.pose(fused).float()
        gripper = pose[..., :0] if self.gripper is None else self.gripper(fused).float()
        return NoisyActions(pose, gripper, self.parts.pose, self.parts.grippers, noise)

    def _gripper_errors(self, given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """[B, H, grippers] each: cross-entropy of a logit for binary ones, the same error as the pose's for others."""
        errors = [
            self._errors(value, target)
            if continuous
            else F.binary_cross_entropy_with_logits(value, (target > 0).float(), reduction="none")
            for value, target, continuous in zip(given.unbind(-1), wanted.unbind(-1), self._continuous, strict=True)
        ]
        return torch.stack(errors, -1)

    def _errors(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self._config.pose_loss == "l1":
            return (predicted - target).abs()
        if self._config.pose_loss == "mse":
            return (predicted - target).square()
        return F.smooth_l1_loss(predicted, target, reduction="none")
