"""The image part of an image-text model, which turns each view into tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from atlas.policies.huggingface_folder import repeated_blocks
from atlas.policies.pretrained_weights import FrozenWeights, without_autocast
from atlas.policies.vlm.families import Family
from atlas.policies.vlm.image_rule import ImageRule


class ImagePart(nn.Module):
    """`forward(images)`: images float [B, V, 3, S, S] in [0, 1] to tokens [B, V * N, D], view after view.

    D is the width of the language part's tokens, to which Qwen3-VL appends the features that are added after the first
    layers. A frozen part's output is rounded to bfloat16, with or without a feature cache.
    """

    def __init__(self, model: Any, family: Family, rule: ImageRule, frozen: FrozenWeights | None, stays: bool) -> None:
        """model: transformers' model without its language part. stays: whether it is frozen. frozen: its weights, if it
        is frozen and they were read."""
        super().__init__()
        self.model, self.frozen = model, frozen
        self._family, self._rule, self._stays = family, rule, stays
        if stays:
            model.requires_grad_(False)

    def train(self, mode: bool = True) -> ImagePart:
        """Set the mode; a frozen part stays in eval mode."""
        return super().train(mode and not self._stays)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self._stays:
            return self._look(images)
        followed = torch.is_grad_enabled() and images.requires_grad  # see `attention.by_gradient`
        with torch.set_grad_enabled(followed), without_autocast(images.device):
            return self._look(images).bfloat16()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """See `Policy.blocks`."""
        return repeated_blocks(self.model)

    def patch_grid(self, tokens: torch.Tensor, views: int) -> torch.Tensor:
        """The patches among tokens [B, V * N, D]: [B, V, rows, columns, D]."""
        patches = tokens.unflatten(1, (views, -1))[:, :, self._family.before_tokens :]
        side = round(patches.shape[2] ** 0.5)
        return patches.unflatten(2, (side, side))

    def _look(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self._rule.apply(images.flatten(0, 1)).to(next(self.model.parameters()).dtype)
        return self._family.look(self.model, pixels, self._rule.grid).unflatten(0, images.shape[:2]).flatten(1, 2)
