"""Fusion: one query per action, attending to vision, language and proprio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.modular.parts import BidirectionalFusionConfig, MLPFusionConfig, QueryFusionConfig


class Fusion(nn.Module):
    """`forward(vision, language, proprio)`: vision tokens [B, N, Dv], LanguageTokens and proprio [B, P] (scaled) to one
    token per action, [B, H, dim]. Tokens may have the lower precision of a frozen encoder."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """See `Policy.blocks`."""
        return ()

    def attention(self, vision: torch.Tensor, language: LanguageTokens, proprio: torch.Tensor) -> torch.Tensor | None:
        """The share that the actions read from each vision token: float32 [B, N], summing to at most 1; None where it
        cannot be said. Arguments as of `forward`."""
        return None


class QueryFusion(Fusion):
    """H action queries that attend to each other and to the tokens of vision, language and proprio.

    Spatial tokens are kept one by one, never averaged. Inputs are normalised first, since encoders such as VGGT's give
    unnormalised tokens.
    """

    def __init__(
        self, config: QueryFusionConfig, horizon: int, vision_dim: int, language_dim: int, proprio_dim: int
    ) -> None:
        super().__init__()
        dim = config.dim
        self.vision = _entrance(vision_dim, dim)
        self.language = _entrance(language_dim, dim)
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

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers.layers)

    def forward(self, vision: torch.Tensor, language: LanguageTokens, proprio: torch.Tensor) -> torch.Tensor:
        """vision [B, N, Dv], language [B, L, Dl], proprio [B, P] (scaled) to [B, H, dim].

        Tokens may have the lower precision of a frozen encoder.
        """
        precision = self.queries.dtype
        vision_tokens = self.vision(vision.to(precision)) + self.kinds[0]
        language_tokens = self.language(language.tokens.to(precision)) + self.kinds[1]
        proprio_token = (self.proprio(proprio) + self.kinds[2]).unsqueeze(1)
        memory = torch.cat([vision_tokens, proprio_token, language_tokens], dim=1)
        there = torch.zeros(
            memory.shape[0], memory.shape[1] - language_tokens.shape[1], dtype=torch.bool, device=memory.device
        )
        queries = self.queries.expand(memory.shape[0], -1, -1)
        out: torch.Tensor = self.layers(
            queries, memory, memory_key_padding_mask=torch.cat([there, language.is_pad], dim=1)
        )
        return out

    def attention(self, vision: torch.Tensor, language: LanguageTokens, proprio: torch.Tensor) -> torch.Tensor:
        """The mean over queries, heads and layers."""
        found: list[torch.Tensor] = []

        def weigh(attention: Any, args: tuple[torch.Tensor, ...], options: dict[str, Any]) -> None:
            found.append(attention.forward(*args, **(options | {"need_weights": True}))[1].mean(1))  # [B, tokens]

        layers: Any = self.layers.layers
        hooks = [layer.multihead_attn.register_forward_pre_hook(weigh, with_kwargs=True) for layer in layers]
        try:
            self(vision, language, proprio)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(found).mean(0)[:, : vision.shape[1]].float()


class BidirectionalFusion(Fusion):
    """The tokens of vision and language attend to each other, then the queries of `QueryFusion` read both.

    This lets an image's tokens express what they mean for this instruction before the queries read them.
    """

    def __init__(
        self, config: BidirectionalFusionConfig, horizon: int, vision_dim: int, language_dim: int, proprio_dim: int
    ) -> None:
        super().__init__()
        dim, heads, mlp_ratio, dropout = config.dim, config.heads, config.mlp_ratio, config.dropout
        self.vision = _entrance(vision_dim, dim)
        self.language = _entrance(language_dim, dim)
        self.exchange = nn.ModuleList(
            _Exchange(dim, heads, round(mlp_ratio * dim), dropout) for _ in range(config.exchange_layers)
        )
        reading = QueryFusionConfig(dim=dim, layers=config.layers, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout)
        self.read = QueryFusion(reading, horizon, dim, dim, proprio_dim)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [*self.exchange, *self.read.blocks]

    def forward(self, vision: torch.Tensor, language: LanguageTokens, proprio: torch.Tensor) -> torch.Tensor:
        """As `QueryFusion.forward`."""
        out: torch.Tensor = self.read(*self._exchanged(vision, language), proprio)
        return out

    def attention(self, vision: torch.Tensor, language: LanguageTokens, proprio: torch.Tensor) -> torch.Tensor:
        """The attention of the queries, which read the tokens after these have attended to each other."""
        return self.read.attention(*self._exchanged(vision, language), proprio)

    def _exchanged(self, vision: torch.Tensor, language: LanguageTokens) -> tuple[torch.Tensor, LanguageTokens]:
        precision = self.read.queries.dtype
        vision_tokens = self.vision(vision.to(precision))
        language_tokens = self.language(language.tokens.to(precision))
        for layer in self.exchange:
            vision_tokens, language_tokens = layer(vision_tokens, language_tokens, language.is_pad)
        return vision_tokens, LanguageTokens(language_tokens, language.is_pad)


class MLPFusion(Fusion):
    """A plain network over proprio and the means of the tokens of vision and language."""

    def __init__(
        self, config: MLPFusionConfig, horizon: int, vision_dim: int, language_dim: int, proprio_dim: int
    ) -> None:
        super().__init__()
        self._horizon, self._dim = horizon, config.dim
        width, layers = vision_dim + language_dim + proprio_dim, list[nn.Module]()
        for _ in range(config.layers - 1):
            layers += [nn.Linear(width, config.dim), nn.ReLU()]
            width = config.dim
        self.layers = nn.Sequential(*layers, nn.Linear(width, horizon * config.dim), nn.ReLU())

    def forward(self, vision: torch.Tensor, language: LanguageTokens, proprio: torch.Tensor) -> torch.Tensor:
        """As `QueryFusion.forward`; no vision tokens count as zeros."""
        first, *others = self.layers
        assert isinstance(first, nn.Linear)
        precision, seen = first.weight.dtype, vision.shape[1]
        given, weight = [language.summary().to(precision), proprio], first.weight
        if seen:
            given.insert(0, vision.to(precision).sum(1) / seen)
        else:
            weight = weight[:, vision.shape[2] :]  # nothing is multiplied by zeros
        fused = F.linear(torch.cat(given, 1), weight, first.bias)
        for layer in others:
            fused = layer(fused)
        return fused.unflatten(1, (self._horizon, self._dim))


class _Exchange(nn.Module):
    """Vision tokens attend to language tokens while these attend to them, then each kind goes through its own MLP."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.vision_norm, self.language_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_vision = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.to_language = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.vision_mlp = _mlp(dim, hidden, dropout)
        self.language_mlp = _mlp(dim, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, vision: torch.Tensor, language: torch.Tensor, is_pad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """vision [B, N, dim], language [B, L, dim] with its padding, bool [B, L]; returns the first two, updated."""
        vision_keys, language_keys = self.vision_norm(vision), self.language_norm(language)
        from_language = self.to_vision(
            vision_keys, language_keys, language_keys, key_padding_mask=is_pad, need_weights=False
        )[0]
        from_vision = self.to_language(language_keys, vision_keys, vision_keys, need_weights=False)[0]
        vision, language = vision + self.dropout(from_language), language + self.dropout(from_vision)
        return vision + self.dropout(self.vision_mlp(vision)), language + self.dropout(self.language_mlp(language))


def _entrance(width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))


def _mlp(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
    )
