"""Fusion: one query an action, attending to what was seen, said and felt."""

from __future__ import annotations

import torch
from torch import nn

from atlas.config import FusionConfig
from atlas.policy.language import LanguageTokens


class QueryFusion(nn.Module):
    """H action queries that attend to each other and to the tokens of vision, language and proprio.

    Spatial tokens are kept one by one, never averaged. Inputs are normalised first, since encoders such as VGGT's
    give tokens that are not.
    """

    def __init__(
        self, config: FusionConfig, horizon: int, vision_dim: int, language_dim: int, proprio_dim: int
    ) -> None:
        super().__init__()
        dim = config.dim
        self.vision = nn.Sequential(nn.LayerNorm(vision_dim), nn.Linear(vision_dim, dim))
        self.language = nn.Sequential(nn.LayerNorm(language_dim), nn.Linear(language_dim, dim))
        self.proprio = nn.Sequential(nn.Linear(proprio_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.kinds = nn.Parameter(torch.randn(3, dim) * 0.02)  # tells vision, language and proprio apart
        self.queries = nn.Parameter(torch.randn(horizon, dim) * 0.02)
        layer = nn.TransformerDecoderLayer(
            dim,
            config.heads,
            round(config.mlp_ratio * dim),
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(dim))

    def forward(self, vision: torch.Tensor, language: LanguageTokens, proprio: torch.Tensor) -> torch.Tensor:
        """vision [B, N, Dv], language [B, L, Dl], proprio [B, P] (scaled) to [B, H, dim]."""
        seen = self.vision(vision) + self.kinds[0]
        said = self.language(language.tokens) + self.kinds[1]
        felt = (self.proprio(proprio) + self.kinds[2]).unsqueeze(1)
        memory = torch.cat([seen, felt, said], dim=1)
        there = torch.zeros(memory.shape[0], memory.shape[1] - said.shape[1], dtype=torch.bool, device=memory.device)
        queries = self.queries.expand(memory.shape[0], -1, -1)
        out: torch.Tensor = self.layers(
            queries, memory, memory_key_padding_mask=torch.cat([there, language.is_pad], dim=1)
        )
        return out
