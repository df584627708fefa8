"""A Gemma layer that may read the keys and values of other layers, and whose norms may depend on a condition.

The MLP and the plain norm are transformers' (`GemmaMLP`, `GemmaRMSNorm`), which give LeRobot's numbers. The layer and
the adaptive norm are Atlas's: transformers' layer reads other keys and values only through a cache object, which
neither activation checkpointing nor FSDP can follow, and transformers has no adaptive norm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm

from atlas.policies.pi.pi_sizes import GemmaSizes


class Rotation(NamedTuple):
    """Rotary embedding: cosines and sines, float32 [B, N, head_dim], where i and i + head_dim / 2 are a pair."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(cls, positions: torch.Tensor, head_dim: int, base: float) -> Rotation:
        """The rotation of positions int64 [B, N] (Su et al., 2021: the angle of pair i is position / base^(2i /
        head_dim))."""
        powers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
        angles = positions[..., None].float() * (1.0 / base**powers)  # [B, N, head_dim / 2]
        angles = torch.cat([angles, angles], dim=-1)
        return cls(angles.cos(), angles.sin())


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, heads, N, head_dim] rotated by its positions, in x's precision."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class AdaptiveRMSNorm(nn.Module):
    """RMS norm without a weight, whose scale, shift and gate are computed from a condition (pi0.5).

    Result: normalised x times (1 + scale) plus shift. The gate is for the branch that follows: x + gate x branch.
    """

    def __init__(self, dim: int, condition_dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.dense = nn.Linear(condition_dim, 3 * dim)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, N, D] and condition [B, C] (or [B, N, C], one per token) to the result and the gate, in x's
        precision."""
        three = self.dense(condition.to(self.dense.weight.dtype)).float()
        scale, shift, gate = (three if three.ndim == x.ndim else three[:, None]).chunk(3, dim=-1)
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * (1 + scale) + shift).to(x.dtype), gate.to(x.dtype)


Norm = GemmaRMSNorm | AdaptiveRMSNorm


def make_norm(dim: int, eps: float, condition_dim: int | None) -> Norm:
    """An adaptive norm where there is a condition, a plain one otherwise."""
    return GemmaRMSNorm(dim, eps) if condition_dim is None else AdaptiveRMSNorm(dim, condition_dim, eps)


def normed(norm: Norm, x: torch.Tensor, condition: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The result, and the gate of the branch that follows; None, which means 1, for a plain norm."""
    if isinstance(norm, AdaptiveRMSNorm):
        assert condition is not None
        adapted: tuple[torch.Tensor, torch.Tensor] = norm(x, condition)
        return adapted
    return norm(x), None


def gated(x: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """x + gate x branch, in x's precision."""
    return x + (branch if gate is None else branch * gate).to(x.dtype)


class _Projections(nn.Module):
    """The projections to queries, keys and values, and the output projection."""

    def __init__(self, sizes: GemmaSizes) -> None:
        super().__init__()
        queries, others = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
        self.q_proj = nn.Linear(sizes.width, queries, bias=False)
        self.k_proj = nn.Linear(sizes.width, others, bias=False)
        self.v_proj = nn.Linear(sizes.width, others, bias=False)
        self.o_proj = nn.Linear(queries, sizes.width, bias=False)


class GemmaLayer(nn.Module):
    """Pre-norm attention over its own tokens and, where given, over another stream's keys and values; then an MLP.

    Its tokens never change the other stream. Joint attention over two streams, of which the first does not see the
    second (pi0's training), is therefore this layer twice: for the first stream, then for the second with the first's
    keys and values. Sampling keeps these and calls the layer for the second stream alone.
    """

    def __init__(
        self, sizes: GemmaSizes, eps: float = 1e-6, condition_dim: int | None = None, act: str = "gelu_pytorch_tanh"
    ) -> None:
        super().__init__()
        self._head_dim = sizes.head_dim
        self.self_attn = _Projections(sizes)
        self.mlp = GemmaMLP(GemmaConfig(hidden_size=sizes.width, intermediate_size=sizes.mlp_dim, hidden_act=act))
        self.input_layernorm = make_norm(sizes.width, eps, condition_dim)
        self.post_attention_layernorm = make_norm(sizes.width, eps, condition_dim)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        keys: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        memory_only: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [B, N, D] to the output, and its own keys (rotated) and values [B, KV, N, head_dim].

        cos, sin: [B, N, head_dim], of its positions. mask: bool [B, 1, N, M + N], true where a token may attend (each
        to at least one). keys, values: [B, KV, M, head_dim], of the other stream, which precede its own. condition:
        [B, C] for adaptive norms. memory_only: do not compute the output, and return x instead.
        """
        attention = self.self_attn
        inner, gate = normed(self.input_layernorm, x, condition)
        inner = inner.to(attention.k_proj.weight.dtype)
        own_keys = rotated(self._heads(attention.k_proj(inner)), cos, sin)
        own_values = self._heads(attention.v_proj(inner))
        if memory_only:
            return x, own_keys, own_values
        queries = rotated(self._heads(attention.q_proj(inner)), cos, sin)
        if keys is None or values is None:
            all_keys, all_values = own_keys, own_values
        else:
            all_keys = torch.cat([keys.to(own_keys.dtype), own_keys], dim=2)
            all_values = torch.cat([values.to(own_values.dtype), own_values], dim=2)
        attended = attend(queries, all_keys, all_values, mask).transpose(1, 2).flatten(2)
        x = gated(x, attention.o_proj(attended), gate)
        inner, gate = normed(self.post_attention_layernorm, x, condition)
        return gated(x, self.mlp(inner.to(attention.k_proj.weight.dtype)), gate), own_keys, own_values

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, heads * head_dim] to [B, heads, N, head_dim]."""
        return x.unflatten(-1, (-1, self._head_dim)).transpose(1, 2)


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """queries [B, heads, N, D], keys and values [B, KV, M, D], mask bool [B, 1, N, M] to [B, heads, N, D].

    Scale D^-0.5. Query heads h * heads / KV to (h + 1) * heads / KV - 1 read the key-value head h.
    """
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
