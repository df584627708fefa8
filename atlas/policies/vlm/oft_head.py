"""Action queries behind the instruction, whose last hidden states become actions at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from atlas.policies.modular.action_heads.regression import RegressionHead
from atlas.policies.vlm.vlm_head_contract import HiddenStates, RegressingHead
from atlas.policies.vlm.vlm_head_sections import OFTHeadConfig
from atlas.types import ActionSpec


class OFTHead(RegressingHead):
    """One learned query an action, and a token of proprio before them, are read by the model with the prompt; an MLP
    with residual blocks turns each query's last hidden state into its action (as in OpenVLA-OFT; Kim et al., 2025).

    All actions of the chunk come out of one pass, and each query attends to all of them.
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
    """Proprio [B, P], scaled, as one token [B, 1, width] of about unit deviation."""

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
