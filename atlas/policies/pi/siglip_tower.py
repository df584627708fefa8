"""PaliGemma's vision tower: SigLIP without its pooling head.

The layers are transformers' `SiglipEncoderLayer`, which give LeRobot's numbers. The module around them is Atlas's,
because transformers keeps positions in a buffer, which stays without values in a module made on the meta device.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from atlas.policies.pi.pi_sizes import SiglipSizes


class _Embeddings(nn.Module):
    """Patches and their learned positions."""

    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, sizes.hidden_size, sizes.patch_size, stride=sizes.patch_size)
        self.position_embedding = nn.Embedding(sizes.patches, sizes.hidden_size)
        nn.init.normal_(self.position_embedding.weight, std=sizes.hidden_size**-0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weight = self.patch_embedding.weight
        patches = self.patch_embedding(images.to(weight.dtype)).flatten(2).transpose(1, 2)
        return patches + self.position_embedding.weight.to(patches.dtype)


class _Encoder(nn.Module):
    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        config = SiglipVisionConfig(**asdict(sizes))
        config._attn_implementation = "sdpa"
        self.layers = nn.ModuleList(SiglipEncoderLayer(config) for _ in range(sizes.num_hidden_layers))


class SiglipTower(nn.Module):
    """Images [B, 3, S, S] in [-1, 1] to the last hidden state [B, patches, D], after the final layer norm."""

    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        self.embeddings = _Embeddings(sizes)
        self.encoder = _Encoder(sizes)
        self.post_layernorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.encoder.layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(images)
        for layer in self.encoder.layers:
            x = layer(x, None)
        seen: torch.Tensor = self.post_layernorm(x.to(self.post_layernorm.weight.dtype))
        return seen
