"""The published VGGT as a policy's vision encoder: frozen, with adapters, or trained further."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from atlas.policies.adapters import add_adapters, check_adapters
from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.modular.vision_encoders.vision_contract import VisionEncoder
from atlas.policies.modular.vision_encoders.vision_sections import LORA_KEY, VISION_KEY, PretrainedVGGTConfig
from atlas.policies.pretrained_weights import FrozenWeights, frozen_dtype, without_autocast
from atlas.policies.vggt import VGGTAggregator, VGGTConfig
from atlas.policies.vggt.published_checkpoint import check_published_file, copy_published_file
from atlas.system.hub import find_weights

# The linear layers of the blocks, and of the DINOv2 inside, by their last names.
_ADAPTED = ("qkv", "proj", "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")


class PretrainedVGGTEncoder(VisionEncoder):
    """The aggregator's last layer as tokens [B, V * (1 + R + N'), 2C]; N' after pooling the patches.

    Frozen weights leave no trace in training: no gradients, no optimizer state, and no place in a checkpoint, which
    holds only their names and hash. Their output is rounded to bfloat16, with or without a feature cache. The tokens
    are not normalised.
    """

    def __init__(
        self,
        config: PretrainedVGGTConfig,
        source: str | Path | None = None,
        read_weights: bool = True,
        key: str = VISION_KEY,
    ) -> None:
        """source: where to read the weights instead of `config.pretrained`. Without `read_weights` they stay
        uninitialised, for callers that only need shapes. `key` names the setting in messages. Raises InputError."""
        super().__init__()
        self._source = source or config.pretrained
        self._pool = config.pool
        self._inference = config.freeze and config.lora is None
        self.dim = 2 * config.embed_dim
        self.frozen = None
        if not read_weights:
            self.aggregator = VGGTAggregator(aggregator_config(config))
        else:
            with torch.device("meta"):  # no time is spent on numbers that are about to be replaced
                self.aggregator = VGGTAggregator(aggregator_config(config))
            dtype = frozen_dtype(config.precision) if config.freeze else torch.float32
            self.aggregator.to(dtype).to_empty(device="cpu")
            sha256 = self.aggregator.load_checkpoint(self._source, key)
            if config.freeze:
                self.frozen = FrozenWeights(config.pretrained, sha256)
        if config.freeze:
            self.aggregator.requires_grad_(False)
        if config.lora is not None:
            add_adapters(self.aggregator, config.lora, _ADAPTED, LORA_KEY)
        self.aggregator.recompute = config.recompute
        self._compiled_for: torch.Size | None = None
        self._compile = config.compile
        if config.compile:
            compile_blocks(self.aggregator)

    def train(self, mode: bool = True) -> PretrainedVGGTEncoder:
        """Frozen weights stay in eval mode."""
        return super().train(mode and not self._inference)

    def forward(self, images: torch.Tensor, language: LanguageTokens | None = None) -> torch.Tensor:
        """images float [B, V, 3, H, W] in [0, 1], H and W multiples of the patch size; the words have no effect."""
        if not self._inference:
            with self._compiled(images.shape):
                return self._tokens(images)
        with torch.inference_mode(), without_autocast(images.device), self._compiled(images.shape):
            tokens = self._tokens(images).bfloat16()
        return tokens.clone()  # a normal tensor again, which training may keep for its backward

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.aggregator.blocks

    def _compiled(self, shape: torch.Size) -> AbstractContextManager[object]:
        """Compiles for the first shape. Compiling for others, such as a last batch's or a rollout's, would take seconds
        each; they run uncompiled."""
        if not self._compile:
            return nullcontext()
        self._compiled_for = self._compiled_for or shape
        return nullcontext() if shape == self._compiled_for else torch.compiler.set_stance("force_eager")

    def save_source(self, path: Path) -> None:
        """Write an unchanged copy of the pretrained weights, from which another encoder can read them."""
        copy_published_file(find_weights(self._source, VISION_KEY), path)

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        patch = self.aggregator.config.patch_size
        grid = images.shape[-2] // patch, images.shape[-1] // patch
        tokens = self.aggregator(images)[0]  # [B, V, 1 + R + N, 2C]
        return pool_patches(tokens, grid, self.aggregator.config.num_special_tokens, self._pool).flatten(1, 2)


def pool_patches(tokens: torch.Tensor, grid: tuple[int, int], specials: int, pool: int) -> torch.Tensor:
    """Tokens [B, V, specials + rows * columns, D] with the patches averaged over pool x pool of them.

    At the borders of a grid that does not divide, over those that exist. Returns [B, V, specials + N', D].
    """
    if pool == 1:
        return tokens
    b, v, _, d = tokens.shape
    special, patches = tokens[:, :, :specials], tokens[:, :, specials:]
    maps = patches.reshape(b * v, *grid, d).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(maps, pool, ceil_mode=True, count_include_pad=False)
    return torch.cat((special, pooled.flatten(2).transpose(1, 2).reshape(b, v, -1, d)), dim=2)


def check_backbone(config: PretrainedVGGTConfig, key: str) -> None:
    """Raises InputError if the weights are not available, or are not those of a VGGT with the config's sizes."""
    if config.lora is not None:
        check_adapters(LORA_KEY)
    path = find_weights(config.pretrained, key)
    with torch.device("meta"):
        model = VGGTAggregator(aggregator_config(config))
    check_published_file(model, path)


def aggregator_config(config: PretrainedVGGTConfig) -> VGGTConfig:
    """The sizes that a config names."""
    return VGGTConfig(
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        num_register_tokens=config.num_register_tokens,
        img_size=config.img_size,
        patch_size=config.patch_size,
        mlp_ratio=config.mlp_ratio,
        rope_freq=config.rope_freq,
        patch_embed_depth=config.patch_embed_depth,
        patch_embed_num_heads=config.patch_embed_num_heads,
    )


def compile_blocks(aggregator: VGGTAggregator) -> None:
    """Block by block: all of a kind share one compiled form, so compiling takes seconds instead of minutes."""
    for block in aggregator.blocks:
        block.compile(dynamic=False)
