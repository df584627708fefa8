"""An action expert that reads the keys and values of each of the model's layers, and makes a chunk from noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from atlas.errors import InputError
from atlas.policies.action_distribution import FlowActions
from atlas.policies.modular.action_heads.action_parts import ActionParts
from atlas.policies.modular.parts import FlowMatchingHeadConfig
from atlas.policies.pi.action_expert import ActionExpert
from atlas.policies.pi.pi_sizes import GemmaSizes
from atlas.policies.published.flow_pieces import (
    FlowTime,
    draw_start,
    draw_training,
    integrate_euler,
    mix,
    time_embedding,
)
from atlas.policies.vlm.vlm_head_contract import HiddenStates, LanguageSizes, VLMHead
from atlas.policies.vlm.vlm_head_sections import ExpertHeadConfig
from atlas.types import ActionSpec, LossTerms

_PERIODS = (4e-3, 4.0)  # the shortest and the longest wave in the embedding of the flow's time


class ExpertHead(VLMHead):
    """A proprio token and one token per noisy action go through pi's action expert. It has one layer for each of the
    model's, which reads that layer's keys and values of images and words. Time conditions its norms (as in pi0.5).

    The prompt does not depend on these tokens, so that sampling computes it once, and only the expert at every step.
    """

    extra_tokens = 0
    reads_memory = True

    def __init__(
        self, config: ExpertHeadConfig, model: LanguageSizes, spec: ActionSpec, horizon: int, proprio_dim: int
    ) -> None:
        super().__init__()
        heads = config.heads or model.heads
        if model.rope_theta is None:
            raise InputError(
                "model.head.name is vlm-expert, but this model has no rotary keys for an expert to read; choose "
                "vlm-oft or vlm-adapter."
            )
        if heads % model.key_heads or model.head_dim % 2:
            raise InputError(
                f"model.head.heads is {heads}; it must be a multiple of the model's key heads, {model.key_heads}."
            )
        self._config, self._pose_dim, self._has_grippers = config, len(spec.pose), bool(spec.grippers)
        self._horizon, self._numbers = horizon, spec.dim
        self._weights = FlowMatchingHeadConfig(pose_weight=config.pose_weight, gripper_weight=config.gripper_weight)
        self.parts = ActionParts(spec)
        self.width = model.width
        sizes = GemmaSizes(config.dim, model.layers, config.mlp_dim, heads, model.key_heads, model.head_dim)
        self.expert = ActionExpert(sizes, rope_theta=model.rope_theta, condition_dim=config.dim)
        self.proprio = nn.Linear(proprio_dim, config.dim)
        self.enter = nn.Linear(spec.dim, config.dim)
        self.time = nn.Sequential(nn.Linear(config.dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))
        self.leave = nn.Linear(config.dim, spec.dim)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.expert.blocks

    def extras(self, proprio: torch.Tensor) -> torch.Tensor:
        return proprio.new_zeros(len(proprio), 0, self.width)

    def forward(
        self,
        states: HiddenStates,
        proprio: torch.Tensor,
        actions: torch.Tensor,
        is_pad: torch.Tensor,
        key: torch.Tensor | None = None,
    ) -> LossTerms:
        """Mean squared errors of the velocity. A sample's noise and time follow from its key."""
        packed = torch.cat(self.parts.split(actions), dim=-1).float()  # the pose, then the grippers
        noise, time = draw_training((len(packed), self._horizon, self._numbers), key, packed.device, FlowTime())
        reached, target = mix(packed, noise, time)
        errors = (self._velocity(states, proprio, reached, time, is_pad) - target).square()
        grippers = errors[..., self._pose_dim :] if self._has_grippers else None
        return self.parts.losses(errors[..., : self._pose_dim], grippers, is_pad, self._weights)

    def sample(
        self,
        states: HiddenStates,
        proprio: torch.Tensor,
        key: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        start = draw_start((len(proprio), self._horizon, self._numbers), key, generator, proprio.device)

        def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self._velocity(states, proprio, x, time)

        return self._unpacked(integrate_euler(velocity, start, self._config.steps))

    def distribution(self, states: HiddenStates, proprio: torch.Tensor, noise: float) -> FlowActions:
        """The distribution of normalised actions."""

        def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self._velocity(states, proprio, x, time)

        shape, steps = (len(proprio), self._horizon, self._numbers), self._config.steps
        return FlowActions(
            velocity, self._unpacked, shape, proprio.device, self._numbers, steps, noise, counted=self._horizon
        )

    def _unpacked(self, grown: torch.Tensor) -> torch.Tensor:
        """The pose and then the grippers, [B, H, A], as actions."""
        grippers = grown[..., self._pose_dim :].clamp(-1, 1) if self._has_grippers else None
        return self.parts.join(grown[..., : self._pose_dim], grippers)

    def _velocity(
        self,
        states: HiddenStates,
        proprio: torch.Tensor,
        x: torch.Tensor,
        time: torch.Tensor,
        is_pad: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """float32 [B, H, A] at x [B, H, A] and time [B]. Only a padded step attends to itself."""
        tokens = torch.cat([self.proprio(proprio)[:, None], self.enter(x)], dim=1)  # [B, 1 + H, dim]
        waves = time_embedding(time, self._config.dim, *_PERIODS).to(tokens.dtype)
        condition = F.silu(self.time(waves))
        count = tokens.shape[1]
        there = torch.ones(len(x), count, dtype=torch.bool, device=x.device)
        if is_pad is not None:
            there[:, 1:] = ~is_pad
        own = there[:, None, :] | torch.eye(count, dtype=torch.bool, device=x.device)
        prompt = states.is_prompt[:, None, :].expand(-1, count, -1)
        places = states.next_position[:, None] + torch.arange(count, device=x.device)
        read = self.expert(tokens, states.memory, torch.cat([prompt, own], dim=-1), places, condition)
        velocity: torch.Tensor = self.leave(read).float()
        return velocity[:, 1:]
