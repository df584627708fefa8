"""Action queries after the instruction, whose last hidden states become actions in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from atlas.policies.modular.action_heads.regression import RegressionHead
from atlas.policies.vlm.vlm_head_contract import HiddenStates, RegressingHead
from atlas.policies.vlm.vlm_head_sections import OFTHeadConfig
from atlas.types import ActionSpec


class OFTHead(RegressingHead):
    """The model reads, with the prompt, a proprio token and one learned query per action; an MLP with residual blocks
    turns each query's last hidden state into its action (as in OpenVLA-OFT; Kim et al., 2025).

    One pass gives all actions of the chunk, and each query attends to all queries.
    """

    def __init__(self, config: OFTHeadConfig, width: int, spec: ActionSpec, horizon: int, proprio_dim: int) -> None:
        super().__init__()
        self.extra_tokens = 1 + horizon
        self.queries = nn.Parameter(torch.randn(horizon, width))
        self.proprio = ProprioToken(proprio_dim, width)
        self.enter = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.dim), nn.GELU())
        self.mlp = nn.ModuleList(_Residual(config.dim) for _ in range(config.blocks))
        self.leave = nn.LayerNorm(config.dim)
        self.actions = RegressionHead(config.regression, config.dim, spec)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.mlp)

    def extras(self, proprio: torch.Tensor) -> torch.Tensor:
        queries = self.queries.expand(len(proprio), -1, -1)
        return torch.cat([self.proprio(proprio).to(queries.dtype), queries], dim=1)

    def fuse(self, states: HiddenStates, proprio: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(states.extras(-1)[:, 1:].to(self.queries.dtype))
        for block in self.mlp:
            hidden = block(hidden)
        fused: torch.Tensor = self.leave(hidden)
        return fused


class ProprioToken(nn.Module):
    """Scaled proprio [B, P] to one token [B, 1, width] with a standard deviation of about 1."""

    def __init__(self, proprio_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Sequential(
            nn.Linear(proprio_dim, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
        )

    def forward(self, proprio: torch.Tensor) -> torch.Tensor:
        token: torch.Tensor = self.project(proprio)
        return token.unsqueeze(1)


class _Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, H, dim]."""
        changed: torch.Tensor = x + nn.functional.gelu(self.linear(self.norm(x)))
        return changed
