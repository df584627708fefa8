"""VGGT's aggregator: tokens of several views go through blocks that attend within a view and over all, in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from atlas.errors import InputError
from atlas.policies.vggt import published_checkpoint as checkpoint
from atlas.policies.vggt.attention_blocks import Block, Rotation, grid_rotation, rotation, token_positions
from atlas.policies.vggt.sizes import VGGTConfig
from atlas.policies.vggt.stems import Dinov2Stem, ImageNormalization, build_stem
from atlas.system.hub import find_weights


class VGGTAggregator(nn.Module):
    """Alternating attention over S views of a scene.

    A view's tokens are a camera token, R registers and N patches. The first view is marked by its own special tokens;
    the others are a set, whose order means nothing. The outputs are not normalised: put a LayerNorm(2C) before whatever
    reads them.
    """

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = config
        # Whether to recompute blocks in the backward pass instead of keeping what they need for it.
        self.recompute = False
        c = config.embed_dim
        self.normalize = ImageNormalization()
        self.stem = build_stem(config)
        # Index 0 is the first view's, index 1 every other view's.
        self.camera_token = nn.Parameter(torch.empty(1, 2, 1, c))
        self.register_token = nn.Parameter(torch.empty(1, 2, config.num_register_tokens, c))
        for token in (self.camera_token, self.register_token):
            nn.init.normal_(token, std=0.02)
        self.frame_blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.global_blocks = nn.ModuleList(self._block() for _ in range(config.depth))

    def _block(self) -> Block:
        c = self.config
        return Block(c.embed_dim, c.num_heads, c.mlp_ratio, c.layer_scale)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, DINOv2's included, in the order in which they are called."""
        within = list(self.stem.blocks) if isinstance(self.stem, Dinov2Stem) else []
        pairs = zip(self.frame_blocks, self.global_blocks, strict=True)
        return [*within, *(block for pair in pairs for block in pair)]

    def forward(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Images [B, S, 3, H, W], float in [0, 1], through the stem and the blocks.

        layers: which pairs of blocks to return, from 0; None: the last. Blocks after the highest are not run. Returns
        for each of them [B, S, 1 + R + N, 2C]: the frame block's output, then the global block's. Raises InputError if
        the images or the layers do not fit.
        """
        p = self.config.patch_size
        if self.stem is None:
            raise InputError("This VGGT has no stem: give tokens to forward_tokens, or a config with another stem.")
        if not isinstance(images, Tensor):
            raise InputError(
                f"VGGT takes one tensor of images of one size, not a {type(images).__name__}; resize or pad the views "
                "to a common size and stack them."
            )
        if images.ndim != 5 or images.shape[2] != 3:
            raise InputError(f"VGGT takes images [batch, views, 3, height, width], not {list(images.shape)}.")
        if not images.is_floating_point():
            raise InputError(f"VGGT takes images as floats in [0, 1], not {images.dtype}; divide by 255.")
        height, width = images.shape[-2:]
        if height % p or width % p or not height or not width:
            right = " x ".join(str(max(1, round(size / p)) * p) for size in (height, width))
            raise InputError(
                f"VGGT's images are {height} x {width}; both must be multiples of the patch size, {p}, such as {right}."
            )
        self._check_views(images.shape[1])
        layers = self._checked_layers(layers)
        tokens = self.stem(self.normalize(images.flatten(0, 1))).unflatten(0, images.shape[:2])
        return self.forward_tokens(tokens, (height // p, width // p), layers)

    def forward_tokens(
        self,
        tokens: Tensor,
        grid: tuple[int, int] | None = None,
        layers: Sequence[int] | None = None,
        positions: Tensor | None = None,
    ) -> list[Tensor]:
        """Patch tokens [B, S, N, C] from any stem through the blocks.

        grid: (rows, columns) with rows * columns = N, for tokens in row order. positions: float [B, S, N, 2],
        (row, column) in patches from 0, integer or not, for tokens anywhere; they replace the grid and carry
        gradients. layers and the result: as in `forward`.
        """
        if tokens.ndim != 4 or tokens.shape[-1] != self.config.embed_dim:
            raise InputError(
                f"VGGT takes tokens [batch, views, patches, {self.config.embed_dim}], not {list(tokens.shape)}."
            )
        batch, views = tokens.shape[:2]
        self._check_views(views)
        layers = self._checked_layers(layers)
        by = self._rotation(tokens, grid, positions)

        x = torch.cat((self._special_tokens(batch, views), tokens), dim=2)  # [B, S, T, C]
        x = x.flatten(0, 1)
        kept: dict[int, Tensor] = {}
        last = max(layers)
        for i, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            within = self._run(frame_block, x, by, 1)
            x = self._run(global_block, within, by, views)
            if i in layers:
                kept[i] = torch.cat((within, x), dim=-1).unflatten(0, (batch, views))
            if i == last:
                break
        return [kept[i] for i in layers]

    def _run(self, block: nn.Module, x: Tensor, by: Rotation, views: int) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = torch.utils.checkpoint.checkpoint(block, x, by, views, use_reentrant=False)
            return again
        out: Tensor = block(x, by, views)
        return out

    def _special_tokens(self, batch: int, views: int) -> Tensor:
        """Camera token and registers of every view: [B, S, 1 + R, C]."""
        both = torch.cat((self.camera_token, self.register_token), dim=2)
        first, others = both.split(1, dim=1)
        return torch.cat((first, others.expand(-1, views - 1, -1, -1)), dim=1).expand(batch, -1, -1, -1)

    def _rotation(self, tokens: Tensor, grid: tuple[int, int] | None, positions: Tensor | None) -> Rotation:
        """The rotation for queries and keys of tokens [B, S, N, C]: per token, or per view and token."""
        c = self.config
        head_dim = c.embed_dim // c.num_heads
        if positions is not None:
            if positions.shape != (*tokens.shape[:3], 2):
                raise InputError(
                    f"VGGT's positions are {list(positions.shape)}; "
                    f"tokens {list(tokens.shape)} need {[*tokens.shape[:3], 2]}."
                )
            return rotation(token_positions(positions.flatten(0, 1), c.num_special_tokens), head_dim, c.rope_freq)
        if grid is None or grid[0] * grid[1] != tokens.shape[2]:
            raise InputError(
                f"VGGT got {tokens.shape[2]} tokens per view and the grid {grid}; "
                "give the (rows, columns) whose product is the number of tokens, or each token's position."
            )
        return grid_rotation(*grid, c.num_special_tokens, head_dim, c.rope_freq, tokens.device)

    def _check_views(self, views: int) -> None:
        if views < 1:
            raise InputError("VGGT got zero views; it takes one or more, so name at least one camera.")

    def _checked_layers(self, layers: Sequence[int] | None) -> list[int]:
        depth = self.config.depth
        layers = [depth - 1] if layers is None else list(layers)
        wrong = [i for i in layers if not 0 <= i < depth]
        if wrong or not layers:
            asked = ", ".join(map(str, wrong)) or "none at all"
            raise InputError(f"VGGT's layers run from 0 to {depth - 1} here; asked for: {asked}.")
        return layers

    # ---- the published checkpoint ----------------------------------------------------------------------------

    def checkpoint_state_dict(self) -> dict[str, Tensor]:
        """All weights under the published checkpoint's names (`aggregator.*`) and in its shapes."""
        return checkpoint.published_state_dict(self)

    def load_checkpoint_state_dict(self, tensors: Mapping[str, Tensor]) -> str:
        """Load the weights that `checkpoint_state_dict` returns. Strict, as `load_checkpoint`."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return checkpoint.load_published(self, shapes, tensors.__getitem__, "The mapping")

    def load_checkpoint(self, reference: str | Path, key: str = "The VGGT checkpoint") -> str:
        """Load the aggregator's weights from a published VGGT checkpoint; returns their hash (`WeightsHash`).

        reference: a .safetensors file, a folder with a model.safetensors, or a name on the Hugging Face hub. Only reads
        the `aggregator.*` tensors; the published heads may be there too, but nothing else. Raises InputError that names
        every missing, unknown or misshaped tensor, and then changes no weight; `key` names the setting in it.
        """
        return checkpoint.load_published_file(self, find_weights(reference, key))
