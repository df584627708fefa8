"""The layers of both streams: the language model's, and those of the expert that reads its keys and values."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from atlas.policies.smolvla.smolvla_sizes import SmolVLASizes, StreamSizes

ROPE_BASE = 10_000.0  # fixed in LeRobot's code; the language model's own config says 100000


def rotation(positions: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines float32 [B, N, 1, head_dim / 2] of positions int64 [B, N]."""
    exponents = torch.arange(head_dim // 2, dtype=torch.float32, device=positions.device) * (2.0 / head_dim)
    angles = positions[..., None, None].float() / ROPE_BASE**exponents
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[B, N, heads, head_dim] in x's type, computed in float32; i and i + head_dim / 2 are a pair."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def bias_of(allowed: torch.Tensor) -> torch.Tensor:
    """The term added to attention scores, float32 [B, 1, Q, K]; allowed: whether a query may attend, bool [B, Q, K].

    The smallest number instead of minus infinity, so that a padded token that may attend to nothing gets a mean, and
    not NaN.
    """
    zero = torch.zeros((), device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(torch.float32).min)[:, None]


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """[B, Q, heads * head_dim] of query [B, Q, heads, head_dim], keys and values [B, K, groups, head_dim]."""
    values = values.to(query.dtype)
    keys = keys.to(query.dtype)
    shared = query.shape[2] // keys.shape[2]
    if shared > 1:
        keys, values = (t.repeat_interleave(shared, dim=2) for t in (keys, values))
    q, k, v = (t.transpose(1, 2) for t in (query, keys, values))
    low = None if bias is None else bias.to(q.dtype).clamp(min=torch.finfo(q.dtype).min)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=low).transpose(1, 2).flatten(2)


def apply(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a module to x in the precision of the module's weights."""
    weight = next(layer.parameters())
    result: torch.Tensor = layer(x.to(weight.dtype))
    return result


class Projections(nn.Module):
    """The four projections of an attention. kv_input: the width of the input to keys and values, which is the stream's
    except in cross layers."""

    def __init__(self, sizes: SmolVLASizes, width: int, kv_input: int) -> None:
        super().__init__()
        heads, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.head_dim = sizes.head_dim
        self.q_proj = nn.Linear(width, heads, bias=False)
        self.k_proj = nn.Linear(kv_input, kv, bias=False)
        self.v_proj = nn.Linear(kv_input, kv, bias=False)
        self.o_proj = nn.Linear(heads, width, bias=False)

    def heads(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """[B, N, heads, head_dim]"""
        return apply(layer, x).unflatten(-1, (-1, self.head_dim))


class StreamLayer(nn.Module):
    """A pre-norm layer of a stream: attention, then a gated MLP, both residual.

    RMS norm and MLP are those of transformers' Llama; the attention is Atlas's, since its keys come from two streams.
    """

    def __init__(self, sizes: SmolVLASizes, stream: StreamSizes, cross: bool = False) -> None:
        """cross: it attends only to the other stream's keys and values, which it projects again."""
        super().__init__()
        self.cross = cross
        kv_input = sizes.kv_heads * sizes.head_dim if cross else stream.width
        self.input_layernorm = LlamaRMSNorm(stream.width, stream.eps)
        self.self_attn = Projections(sizes, stream.width, kv_input)
        self.post_attention_layernorm = LlamaRMSNorm(stream.width, stream.eps)
        self.mlp = LlamaMLP(
            SimpleNamespace(hidden_size=stream.width, intermediate_size=stream.mlp, mlp_bias=False, hidden_act="silu")
        )

    def forward(
        self,
        x: torch.Tensor,
        keys: torch.Tensor | None,
        values: torch.Tensor | None,
        bias: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [B, N, width] after the layer, and the layer's own rotated keys and its values [B, N, groups, head_dim].

        keys, values: of tokens before x's, to which it attends too. bias: float32 [B, 1, N, all keys]. cos, sin: of x's
        positions, see `rotation`. A cross layer has no keys of its own and returns the projected given ones.
        """
        attention = self.self_attn
        h = self.input_layernorm(x)
        query = rotate(attention.heads(attention.q_proj, h), cos, sin)
        if self.cross:
            assert keys is not None and values is not None
            own_keys = all_keys = attention.heads(attention.k_proj, keys.flatten(2))
            own_values = all_values = attention.heads(attention.v_proj, values.flatten(2))
        else:
            own_keys = rotate(attention.heads(attention.k_proj, h), cos, sin)
            own_values = attention.heads(attention.v_proj, h)
            all_keys = own_keys if keys is None else torch.cat([keys.to(own_keys.dtype), own_keys], dim=1)
            all_values = own_values if values is None else torch.cat([values.to(own_values.dtype), own_values], dim=1)
        x = x + apply(attention.o_proj, attend(query, all_keys, all_values, bias))
        x = x + apply(self.mlp, self.post_attention_layernorm(x))
        return x, own_keys, own_values
