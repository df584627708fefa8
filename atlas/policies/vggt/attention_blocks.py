"""VGGT's transformer block and its rotary embedding of (row, column) positions."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]  # the factors for `rotate`: cos and signed sin, float32 [..., T, 1, D]


def token_positions(positions: Tensor, specials: int) -> Tensor:
    """The position at which the rotary embedding sees each token of a view.

    positions: [..., N, 2], (row, column) of the patches from 0. Returns float32 [..., specials + N, 2].
    Special tokens stand at (0, 0), where nothing turns; patches are shifted by one to keep clear of them.
    """
    positions = positions.float() + 1.0
    return torch.cat((positions.new_zeros(*positions.shape[:-2], specials, 2), positions), dim=-2)


def rotation(positions: Tensor, head_dim: int, base: float) -> Rotation:
    """The rotation for heads with D = head_dim channels, for tokens at float32 positions [..., T, 2].

    Computed in float32 whatever the model's precision: bfloat16 would round an angle of 37 rad by up to an eighth.
    """
    quarter = head_dim // 4
    steps = torch.arange(quarter, device=positions.device, dtype=torch.float32)
    angles = positions.unsqueeze(-1) * base ** (-steps / quarter)  # [..., T, 2, D/4]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).flatten(-2).unsqueeze(-2), torch.cat((-sin, sin), dim=-1).flatten(
        -2
    ).unsqueeze(-2)


@lru_cache(maxsize=32)
def grid_rotation(height: int, width: int, specials: int, head_dim: int, base: float, device: torch.device) -> Rotation:
    """The rotation for a whole height x width grid of patches, row by row, and the special tokens before it."""
    # A first call in inference mode would otherwise leave tensors behind that training must not use.
    with torch.inference_mode(False):
        rows = torch.arange(height, device=device, dtype=torch.float32)
        columns = torch.arange(width, device=device, dtype=torch.float32)
        positions = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
        return rotation(token_positions(positions, specials), head_dim, base)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn the heads of x [..., T, heads, D] by their tokens' positions; float32 out.

    The first half of a head turns by row, the second by column; in each, channel j is paired with j + D/4.
    """
    cos, sin = by
    x = x.float()
    a, b, c, d = x.chunk(4, dim=-1)
    # Whole heads at a time: on a CPU this takes less than half the time of turning the quarters one by one.
    return torch.addcmul(x * cos, torch.cat((b, a, d, c), dim=-1), sin)


class Attention(nn.Module):
    """Self-attention with normalised and rotated queries and keys, within each view or over all of them."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=1e-5)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=1e-5)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, by: Rotation, views: int) -> Tensor:
        """x: [M, T, C]; each run of `views` entries of M attends jointly (1: each separately)."""
        m, t, c = x.shape
        q, k, v = self.qkv(x).view(m, t, 3, -1, self.head_dim).unbind(2)
        q = rotate(self.q_norm(q), by).to(v.dtype)
        k = rotate(self.k_norm(k), by).to(v.dtype)
        # Everything but this product treats tokens one by one, so joining the views is a reshape here.
        q, k, v = (a.reshape(m // views, views * t, -1, self.head_dim).transpose(1, 2) for a in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(m, t, c))


class MLP(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block. The names of its parts are those of the published checkpoint."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale)
        self._initialise()

    def _initialise(self) -> None:
        """Weights that preserve the scale of activations at any width, so that small forms train well too."""
        # The three maps of qkv are each square: the fused matrix's own fan-out would start them too small.
        for weight in (*self.attn.qkv.weight.chunk(3), self.attn.proj.weight, self.mlp.fc1.weight, self.mlp.fc2.weight):
            nn.init.xavier_uniform_(weight)
        for layer in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, by: Rotation, views: int) -> Tensor:
        """x: [M, T, C] -> the same; `by` and `views` as in Attention."""
        x = x + self.ls1(self.attn(self.norm1(x), by, views))
        return x + self.ls2(self.mlp(self.norm2(x)))
