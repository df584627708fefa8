"""Stems, which turn images into patch tokens: the published DINOv2, and two small enough to train from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas.policies.pretrained_weights import without_autocast
from atlas.policies.vggt.sizes import VGGTConfig

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ImageNormalization(nn.Module):
    """ImageNet's mean and standard deviation, in float32 even if the model has another precision."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._set(None)

    def _set(self, device: torch.device | None) -> None:
        for name, values in (("mean", _MEAN), ("std", _STD)):
            value = torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImageNormalization:
        # `.to(torch.bfloat16)` would round these constants and `.to_empty()` would leave noise in them.
        super()._apply(fn, recurse)
        self._set(self.mean.device)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """[..., 3, H, W] in [0, 1] -> float32 of the same shape."""
        return (images.float() - self.mean) / self.std


@lru_cache(maxsize=32)
def _resize_matrix(old: int, new: int, device: torch.device) -> Tensor:
    """The bicubic, antialiased resize of a line of `old` points to `new` ones, as a matrix, float32 [new, old]."""
    with torch.inference_mode(False):  # a first call in inference mode would leave tensors that training must not use
        # Row i of this image is the i-th unit vector. Not a stack of images one pixel wide: torch 2.13 fails there.
        units = torch.eye(old, device=device).view(1, 1, old, old)
        resized = F.interpolate(units, size=(old, new), mode="bicubic", align_corners=False, antialias=True)
        return resized.view(old, new).T.contiguous()


def resize_positions(grid: Tensor, height: int, width: int) -> Tensor:
    """A square grid of position vectors [n * n, C], resized bicubically to float32 [height * width, C].

    Bicubic resizing is linear and works axis by axis, so the two matrices for a size can be kept. Resized values could
    not: they change with each step of training. It also avoids the antialiased kernel's backward, which is not
    deterministic on CUDA.
    """
    side = math.isqrt(grid.shape[0])
    if (height, width) == (side, side):
        return grid.float()
    rows = _resize_matrix(side, height, grid.device)
    columns = _resize_matrix(side, width, grid.device)
    with without_autocast(grid.device):
        stretched = rows @ grid.float().view(side, -1)  # [height, n * C]
        return (columns @ stretched.view(height, side, -1)).flatten(0, 1)


class Dinov2Stem(nn.Module):
    """DINOv2 with registers, as in VGGT: the patch tokens after its last norm."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        # Imported here because it takes seconds, which the small stems need not wait for.
        from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

        self.model: Any = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=config.embed_dim,
                num_hidden_layers=config.patch_embed_depth,
                num_attention_heads=config.patch_embed_num_heads,
                mlp_ratio=int(config.mlp_ratio),
                layer_norm_eps=1e-6,
                image_size=config.img_size,
                patch_size=config.patch_size,
                num_register_tokens=config.num_register_tokens,
                attn_implementation="sdpa",  # type: ignore[call-arg]  # a keyword of every config, in none's signature
            )
        )
        # In the checkpoint but never used: if a gradient were expected for it, data-parallel training would wait.
        self.model.embeddings.mask_token.requires_grad_(False)

    @property
    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model.encoder.layer
        return layers

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [M, 3, H, W] -> [M, N, C], row by row."""
        embeddings = self.model.embeddings
        height, width = (size // embeddings.patch_size for size in images.shape[-2:])
        patches = embeddings.patch_embeddings(images)
        # The model's own forward would resize the position grid each time, through the slow kernel.
        cls_position, grid = embeddings.position_embeddings[0].split((1, embeddings.position_embeddings.shape[1] - 1))
        patches = patches + resize_positions(grid, height, width).to(grid.dtype)
        specials = torch.cat((embeddings.cls_token[0] + cls_position, embeddings.register_tokens[0]))  # [1 + R, C]
        tokens = torch.cat((specials.expand(len(images), -1, -1), patches), dim=1)
        tokens = self.model.encoder(tokens).last_hidden_state
        return self.model.layernorm(tokens[:, len(specials) :])


class _SmallStem(nn.Module):
    """A vector per patch, plus a learned vector for the patch's place; subclasses compute the former.

    The aggregator's rotary embedding only tells how far tokens are from each other; a patch's place in the image has to
    be in the token itself, as it is with DINOv2.
    """

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty((config.img_size // config.patch_size) ** 2, config.embed_dim))
        nn.init.trunc_normal_(self.positions, std=0.02)

    def _tokens(self, features: Tensor) -> Tensor:
        """[M, C', h, w] -> [M, h * w, C'], row by row."""
        return features.flatten(2).transpose(1, 2)

    def _placed(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens [M, height * width, C] with their places added."""
        return tokens + resize_positions(self.positions, height, width).to(self.positions.dtype)


class ConvStem(_SmallStem):
    """3x3 convolutions of stride 2 down to the patch size, then 1x1. No batch statistics: each view is independent."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        channels = 3
        for i in range(config.patch_size.bit_length() - 1):
            width = min(config.stem_width * 2**i, config.embed_dim)
            convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)  # the norm has a bias
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.GroupNorm(math.gcd(8, width), width), nn.GELU()]
            channels = width
        self.net = nn.Sequential(*layers)
        # The 1x1 convolution as a linear layer. As a convolution, its gradient would have other strides than its
        # weight, and data-parallel training would copy it at every step, with a warning.
        self.project = nn.Linear(channels, config.embed_dim)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [M, 3, H, W] -> [M, N, C], row by row."""
        # Faster with channels last. Only the images: weights in that order could not be saved directly.
        images = images.to(self.positions.dtype).contiguous(memory_format=torch.channels_last)
        features = self.net(images)
        return self._placed(self.project(self._tokens(features)), *features.shape[-2:])


class PatchStem(_SmallStem):
    """Each patch separately, in one linear map."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__(config)
        self.project = nn.Conv2d(3, config.embed_dim, config.patch_size, stride=config.patch_size)
        nn.init.xavier_uniform_(self.project.weight.flatten(1))  # initialised as the linear map of a patch
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [M, 3, H, W] -> [M, N, C], row by row."""
        features = self.project(images.to(self.positions.dtype))
        return self._placed(self._tokens(features), *features.shape[-2:])


def build_stem(config: VGGTConfig) -> nn.Module | None:
    """The stem that a config names: normalised images [M, 3, H, W] -> tokens [M, N, C]; None for `none`."""
    stems: dict[str, type[nn.Module]] = {"dinov2": Dinov2Stem, "conv": ConvStem, "patch": PatchStem}
    return stems[config.stem](config) if config.stem in stems else None
