"""The dimensions of an action that are pose and those that are grippers, and the losses of both: the same for every
head."""

from __future__ import annotations

import torch
from torch import nn

from atlas.policies.modular.parts import FlowMatchingHeadConfig, GaussianHeadConfig, RegressionHeadConfig
from atlas.types import ActionSpec, LossTerms


class ActionParts(nn.Module):
    """The dimensions of an action's pose (everything except grippers), and of its grippers; on the device."""

    pose: torch.Tensor  # int64 [P]
    grippers: torch.Tensor  # int64 [G], with G from 0 to 2

    def __init__(self, spec: ActionSpec) -> None:
        super().__init__()
        grippers = [dimension for dimension, _ in spec.grippers]
        self.register_buffer("pose", torch.tensor(spec.pose), persistent=False)
        self.register_buffer("grippers", torch.tensor(grippers, dtype=torch.int64), persistent=False)

    def split(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions [..., A] to pose [..., P] and grippers [..., G]."""
        return actions[..., self.pose], actions[..., self.grippers]

    def join(self, pose: torch.Tensor, grippers: torch.Tensor | None) -> torch.Tensor:
        """The inverse of `split`, float32 [..., A]; None: there is no gripper."""
        dim = len(self.pose) + len(self.grippers)
        actions = pose.new_zeros(*pose.shape[:-1], dim, dtype=torch.float32)
        actions[..., self.pose] = pose
        if grippers is not None:
            actions[..., self.grippers] = grippers
        return actions

    def losses(
        self,
        pose: torch.Tensor,
        grippers: torch.Tensor | None,
        is_pad: torch.Tensor,
        weights: RegressionHeadConfig | FlowMatchingHeadConfig | GaussianHeadConfig,
    ) -> LossTerms:
        """Means of errors over the valid steps: pose [B, H, P], grippers [B, H, G], is_pad bool [B, H]."""
        valid = (~is_pad).float()
        n_valid = valid.sum()
        terms = {"pose_loss": (pose.mean(-1) * valid).sum() / n_valid.clamp(min=1)}
        loss = weights.pose_weight * terms["pose_loss"]
        if grippers is not None:
            terms["gripper_loss"] = (grippers.mean(-1) * valid).sum() / n_valid.clamp(min=1)
            loss = loss + weights.gripper_weight * terms["gripper_loss"]
        return LossTerms(loss, n_valid, terms)
