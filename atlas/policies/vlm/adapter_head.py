"""A small transformer over the chunk, whose layers read those of the model through gated bridges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from atlas.policies.modular.action_heads.regression import RegressionHead
from atlas.policies.vlm.oft_head import ProprioToken
from atlas.policies.vlm.vlm_head_contract import HiddenStates, RegressingHead
from atlas.policies.vlm.vlm_head_sections import AdapterHeadConfig
from atlas.types import ActionSpec


class AdapterHead(RegressingHead):
    """One latent per action; in each of the head's layers the latents read one layer of the model (VLA-Adapter; Wang et
    al., 2025).

    The model reads learned queries after the prompt. A bridge has three attentions side by side: to the prompt's hidden
    states, through a gate that is closed at first; to those of the queries and a proprio token; and among the actions.
    """

    def __init__(
        self,
        config: AdapterHeadConfig,
        width: int,
        layers: int,
        spec: ActionSpec,
        horizon: int,
        proprio_dim: int,
    ) -> None:
        super().__init__()
        self.extra_tokens = config.queries
        count = min(config.layers or layers, layers)
        # The last of `count` equal stretches of the model's layers: with as many bridges, each reads its own.
        self._reads = [round((place + 1) * layers / count) - 1 for place in range(count)]
        self.queries = nn.Parameter(torch.randn(config.queries, width)) if config.queries else None
        self.proprio = ProprioToken(proprio_dim, width)
        self.latents = nn.Parameter(torch.randn(horizon, config.dim) * 0.02)
        hidden = round(config.mlp_ratio * config.dim)
        self.bridges = nn.ModuleList(_Bridge(config.dim, width, config.heads, hidden) for _ in range(count))
        self.leave = nn.LayerNorm(config.dim)
        self.actions = RegressionHead(config.regression, config.dim, spec)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.bridges)

    def extras(self, proprio: torch.Tensor) -> torch.Tensor:
        if self.queries is None:
            return proprio.new_zeros(len(proprio), 0, self.proprio.width)
        return self.queries.expand(len(proprio), -1, -1)

    def fuse(self, states: HiddenStates, proprio: torch.Tensor) -> torch.Tensor:
        dtype = self.latents.dtype
        latents = self.latents.expand(len(proprio), -1, -1)
        proprio_token = self.proprio(proprio).to(dtype)
        mask = states.is_prompt[:, None, None]
        for layer, bridge in zip(self._reads, self.bridges, strict=True):
            own = torch.cat([states.extras(layer).to(dtype), proprio_token], dim=1)
            latents = bridge(latents, states.layers[layer].to(dtype), own, mask)
        fused: torch.Tensor = self.leave(latents)
        return fused


class _Bridge(nn.Module):
    """Gated attention to the model's prompt, attention to its queries, attention among the actions; then an MLP."""

    def __init__(self, dim: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.prompt = _Source(width, dim, heads)
        self.own = _Source(width, dim, heads)
        self.among = _Source(dim, dim, heads)
        self.gate = nn.Parameter(torch.zeros(1))  # FSDP shards no 0-d weights
        self.join = nn.Linear(3 * dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(
        self, latents: torch.Tensor, prompt: torch.Tensor, own: torch.Tensor, is_prompt: torch.Tensor
    ) -> torch.Tensor:
        """latents: [B, H, dim]; prompt: [B, T, width]; own: [B, E + 1, width]; is_prompt: bool [B, 1, 1, T], which of
        the T tokens are the prompt's."""
        query = self.query(self.norm(latents))
        read = [
            torch.tanh(self.gate) * self.prompt(query, prompt, is_prompt),
            self.own(query, own),
            self.among(query, latents),
        ]
        latents = latents + self.join(torch.cat(read, dim=-1))
        changed: torch.Tensor = latents + self.mlp(latents)
        return changed


class _Source(nn.Module):
    """Attention of a query to tokens of another width."""

    def __init__(self, width: int, dim: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(width)
        self.keys_values = nn.Linear(width, 2 * dim, bias=False)

    def forward(self, query: torch.Tensor, tokens: torch.Tensor, there: torch.Tensor | None = None) -> torch.Tensor:
        """query [B, H, dim] and tokens [B, T, width] to [B, H, dim]; there: bool [B, 1, 1, T], which tokens count."""
        keys, values = self.keys_values(self.norm(tokens)).unflatten(-1, (2, self._heads, -1)).permute(2, 0, 3, 1, 4)
        asked = query.unflatten(-1, (self._heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(asked, keys, values, attn_mask=there).transpose(1, 2).flatten(2)
