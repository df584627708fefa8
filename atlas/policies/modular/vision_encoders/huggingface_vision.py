"""A published image encoder as a policy's vision encoder: frozen, with adapters, or trained further."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from atlas.policies.adapters import add_adapters
from atlas.policies.huggingface_folder import quiet, read_image_settings, repeated_blocks
from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.modular.vision_encoders.huggingface_images import (
    ImageTower,
    PixelScale,
    find_image_model,
    pool_grid,
)
from atlas.policies.modular.vision_encoders.vision_contract import VisionEncoder
from atlas.policies.modular.vision_encoders.vision_sections import LORA_KEY, HuggingFaceVisionConfig
from atlas.policies.modular.vision_encoders.vision_sections import VISION_KEY as KEY
from atlas.policies.pretrained_weights import FrozenWeights, cast_weights, frozen_dtype, without_autocast
from atlas.system.files import partial_folder, write_text


class HuggingFaceVisionEncoder(VisionEncoder):
    """The last hidden states of each view's patches as tokens [B, V * N', dim]; N' after pooling.

    Images are scaled by the model's own mean and deviation. Frozen weights leave no trace in training: no gradients, no
    optimizer state, and no place in a checkpoint, which holds only their names and hash; their output is rounded to
    bfloat16, with or without a feature cache. The view of each token is added afterwards, as a learned vector.

    Raises InputError if the model does not exist and cannot be downloaded, lacks weights, or does not say how images
    are scaled for it; it is never replaced by another model or random weights.
    """

    copy_name = "vision"

    def __init__(
        self,
        config: HuggingFaceVisionConfig,
        views: int | None,
        image_size: int | None = None,
        source: str | Path | None = None,
        read_weights: bool = True,
    ) -> None:
        """views: None for the tokens alone, without the learned vectors of views. image_size: checked, if given."""
        super().__init__()
        self._pool, self._inference = config.pool, config.freeze and config.lora is None
        name = f"'{config.pretrained}'" + (f" (read from {source})" if source is not None else "")
        self._folder = find_image_model(config.pretrained if source is None else source, read_weights)
        self._tower = tower = ImageTower.find(self._folder, name)
        self._scale = PixelScale.of(read_image_settings(self._folder, name, KEY), name, KEY)
        if image_size is not None:
            tower.patches_a_side(image_size)
        self.dim = tower.dim
        if not read_weights:
            self.model = tower.build()
        elif config.freeze:
            self.model = tower.read(dtype=None)
            self.frozen = FrozenWeights(config.pretrained, tower.hash_of(self.model))
            cast_weights(self.model, frozen_dtype(config.precision))
        else:
            self.model = tower.read(dtype=torch.float32)
        for tensor, parameter in self.model.named_parameters():
            parameter.requires_grad_(not config.freeze and not tower.is_unread(tensor))
        if config.lora is not None:
            add_adapters(self.model, config.lora, _linear_layers(self.model), LORA_KEY)
        self.views = nn.Parameter(torch.randn(views, tower.dim) * 0.02) if views is not None else None

    def train(self, mode: bool = True) -> HuggingFaceVisionEncoder:
        """Frozen weights stay in eval mode."""
        super().train(mode)
        self.model.train(mode and not self._inference)
        return self

    def forward(self, images: torch.Tensor, language: LanguageTokens | None = None) -> torch.Tensor:
        """images float [B, V, 3, H, W] in [0, 1], H and W multiples of the patch size; the words have no effect."""
        if not self._inference:
            return self._tokens(images)
        with torch.no_grad(), without_autocast(images.device):
            return self._tokens(images).bfloat16()

    def finish(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, V * N', dim], with the learned vectors of their views added."""
        assert self.views is not None
        by_view = tokens.unflatten(1, (len(self.views), -1)).to(self.views.dtype)
        return (by_view + self.views.unsqueeze(1)).flatten(1, 2)

    def patch_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        assert self.views is not None
        by_view = tokens.unflatten(1, (len(self.views), -1))
        side = round(by_view.shape[2] ** 0.5)
        return by_view.unflatten(2, (side, side))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return repeated_blocks(self.model)

    def save_source(self, path: Path) -> None:
        """Write the pretrained model as a Hugging Face folder, from which another encoder can read it.

        An earlier folder of that name is replaced once the new one is complete.
        """
        settings = read_image_settings(self._folder, self._tower.name, KEY)
        with partial_folder(path) as partial:
            with quiet():
                self._tower.read(dtype=None).save_pretrained(partial)
            write_text(partial / "preprocessor_config.json", json.dumps(settings, indent=2))
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        side = images.shape[-1] // self._tower.patch
        pixels = self._scale.apply(images.flatten(0, 1)).to(next(self.model.parameters()).dtype)
        tokens = pool_grid(self._tower.look(self.model, pixels), side, self._pool)  # [B * V, N', dim]
        return tokens.unflatten(0, images.shape[:2]).flatten(1, 2)


def _linear_layers(model: nn.Module) -> list[str]:
    """The names of the linear layers in the model's blocks."""
    inside = {id(m) for block in repeated_blocks(model) for m in block.modules() if isinstance(m, nn.Linear)}
    return [name for name, module in model.named_modules() if id(module) in inside]
