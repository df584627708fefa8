"""pi's action expert: a stack of layers that read the keys and values of a language model's layers.

It works with any model, not only PaliGemma, whose layers have keys and values with the same heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from atlas.policies.pi.gemma_layers import GemmaLayer, Rotation, make_norm, normed
from atlas.policies.pi.pi_sizes import GemmaSizes

Memory = Sequence[tuple[torch.Tensor, torch.Tensor]]  # each layer's keys (rotated) and values [B, KV, M, head_dim]


class ActionExpert(nn.Module):
    """Gemma's layers over N tokens of its own, each of which reads the memory of the same depth, and a final norm."""

    def __init__(
        self,
        sizes: GemmaSizes,
        eps: float = 1e-6,
        rope_theta: float = 10000.0,
        condition_dim: int | None = None,
        act: str = "gelu_pytorch_tanh",
    ) -> None:
        """condition_dim: the width of the condition for adaptive norms (pi0.5); None: plain norms (pi0)."""
        super().__init__()
        self.sizes, self._rope_theta = sizes, rope_theta
        self.layers = nn.ModuleList(GemmaLayer(sizes, eps, condition_dim, act) for _ in range(sizes.depth))
        self.norm = make_norm(sizes.width, eps, condition_dim)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(
        self,
        tokens: torch.Tensor,
        memory: Memory,
        mask: torch.Tensor,
        positions: torch.Tensor,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """tokens [B, N, D] to [B, N, D].

        mask: bool [B, N, M + N], true where a token may attend to one of the memory or of its own; positions: int64
        [B, N], on the memory's scale; condition: [B, C]. Raises ValueError where the memory has other layers or heads.
        """
        self._check(memory)
        cos, sin = Rotation.of(positions, self.sizes.head_dim, self._rope_theta)
        x = tokens
        for layer, (keys, values) in zip(self.layers, memory, strict=True):
            x, _, _ = layer(x, cos, sin, mask[:, None], keys, values, condition)
        return normed(self.norm, x, condition)[0]

    def _check(self, memory: Memory) -> None:
        expected = (self.sizes.num_kv_heads, self.sizes.head_dim)
        if len(memory) != len(self.layers):
            raise ValueError(f"the expert has {len(self.layers)} layers and reads a memory of {len(memory)}")
        found = (memory[0][0].shape[1], memory[0][0].shape[3])
        if found != expected:
            raise ValueError(
                f"the expert has key-value heads of {expected[0]} x {expected[1]}, its memory {found[0]} x {found[1]}"
            )
