"""Images to tokens: the vision tower of SmolVLM2, and the connector that turns 4 x 4 patches into one token.

The tower's layers are transformers'. The patch embedding is Atlas's: patch (row, column) has the position row * side +
column. transformers computes positions from fractions and buckets, which some releases do wrongly, and for some numbers
of patches the fractions are rounded into the next bucket.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMEncoderLayer

from atlas.policies.smolvla.smolvla_layers import apply
from atlas.policies.smolvla.smolvla_sizes import SmolVLASizes, VisionSizes


class PatchEmbedding(nn.Module):
    """float [B, 3, S, S] in [-1, 1] to [B, patches, width]."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self._side, self._patch = sizes.side, sizes.patch_size
        self.patch_embedding = nn.Conv2d(3, sizes.width, sizes.patch_size, stride=sizes.patch_size)
        self.position_embedding = nn.Embedding(sizes.side**2, sizes.width)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        patches = apply(self.patch_embedding, pictures)  # [B, width, rows, columns]
        # The positions of a smaller image are spread over the whole range.
        rows, columns = (
            torch.arange(count, device=pictures.device) * self._side // count for count in patches.shape[-2:]
        )
        positions = (rows[:, None] * self._side + columns[None]).flatten()
        return patches.flatten(2).transpose(1, 2) + self.position_embedding(positions)


class VisionTower(nn.Module):
    """Images float [B, 3, S, S] in [-1, 1] to [B, patches, width], after the final norm."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        config = SmolVLMVisionConfig(
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            layer_norm_eps=sizes.eps,
            hidden_act="gelu_pytorch_tanh",
            attention_dropout=0.0,
        )
        config._attn_implementation = "sdpa"
        self.embeddings = PatchEmbedding(sizes)
        layers = nn.ModuleList(SmolVLMEncoderLayer(config) for _ in range(sizes.layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(sizes.width, eps=sizes.eps)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.encoder["layers"].children())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(pictures)
        for layer in self.layers:
            x = layer(x, None)
        normed: torch.Tensor = self.post_layernorm(x)
        return normed


class Connector(nn.Module):
    """[B, patches, width] to [B, patches / shuffle^2, text width]: space to depth, then one linear layer.

    The new channels run over the rows within the group, then its columns, then the old channels.
    """

    def __init__(self, sizes: SmolVLASizes) -> None:
        super().__init__()
        self._shuffle = sizes.shuffle
        wide = sizes.vision.width * sizes.shuffle**2
        self.modality_projection = nn.ModuleDict({"proj": nn.Linear(wide, sizes.text.width, bias=False)})

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        b, n, width = patches.shape
        s, side = self._shuffle, round(n**0.5)
        grid = patches.view(b, side // s, s, side // s, s, width)
        grouped = grid.permute(0, 1, 3, 2, 4, 5).reshape(b, n // s**2, s * s * width)
        return apply(self.modality_projection["proj"], grouped)
