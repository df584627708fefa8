"""The form of a VGGT aggregator: the published one by default, small ones for training from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from atlas.errors import InputError, did_you_mean

Stem = Literal["dinov2", "conv", "patch", "none"]


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes of an aggregator; `VGGTConfig()` is VGGT-1B's. Raises InputError if they do not go together."""

    embed_dim: int = 1024  # C; the outputs are 2C wide
    depth: int = 24  # pairs of a frame block and a global block
    num_heads: int = 16
    num_register_tokens: int = 4  # R, in every view (and in the dinov2 stem)
    img_size: int = 518  # the square image whose patches the stem's position grid fits without resizing
    patch_size: int = 14
    mlp_ratio: float = 4.0
    rope_freq: float = 100.0  # base of the rotary embedding's wavelengths
    stem: Stem = "dinov2"  # none: tokens come from outside, through `forward_tokens` only
    patch_embed_depth: int = 24  # of the dinov2 stem
    patch_embed_num_heads: int = 16  # of the dinov2 stem
    stem_width: int = 16  # of the conv stem's first convolution; each further one doubles it, up to embed_dim
    # LayerScale's initial value. 0.01 is the published one, meant for 24 pairs of blocks over a pretrained stem; in a
    # few blocks over an untrained stem, 0.1 to 1 lets attention count from the first step.
    layer_scale: float = 0.01

    def __post_init__(self) -> None:
        if self.stem not in get_args(Stem):
            near = did_you_mean(str(self.stem), get_args(Stem))
            raise InputError(f"VGGT's stem is one of {', '.join(get_args(Stem))}, not '{self.stem}'.{near}")
        for name in ("embed_dim", "depth", "num_heads", "img_size", "patch_size", "stem_width"):
            if getattr(self, name) < 1:
                raise InputError(f"VGGT's {name} is {getattr(self, name)}; it must be at least 1.")
        if self.num_register_tokens < 0:
            raise InputError(f"VGGT's num_register_tokens is {self.num_register_tokens}; it must be at least 0.")
        if self.mlp_ratio <= 0 or self.rope_freq <= 0:
            raise InputError("VGGT's mlp_ratio and rope_freq must be above 0.")
        # Each head turns by row in one half and by column in the other, and a turn takes pairs of channels.
        if self.embed_dim % (4 * self.num_heads):
            raise InputError(
                f"VGGT's embed_dim is {self.embed_dim} with {self.num_heads} heads; "
                f"it must be a multiple of 4 x num_heads = {4 * self.num_heads}."
            )
        if self.stem != "none" and self.img_size % self.patch_size:
            raise InputError(
                f"VGGT's img_size is {self.img_size}; it must be a multiple of the patch_size, {self.patch_size}."
            )
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise InputError(
                f"VGGT's patch_size is {self.patch_size}; the conv stem halves the image repeatedly, "
                "so it must be a power of two such as 8 or 16 (or use the patch stem)."
            )
        if self.stem == "dinov2":
            if self.patch_embed_depth < 1 or self.patch_embed_num_heads < 1:
                raise InputError("VGGT's patch_embed_depth and patch_embed_num_heads must be at least 1.")
            if self.embed_dim % self.patch_embed_num_heads:
                raise InputError(
                    f"VGGT's embed_dim is {self.embed_dim}; the dinov2 stem needs a multiple of "
                    f"patch_embed_num_heads, {self.patch_embed_num_heads}."
                )
            if self.mlp_ratio != int(self.mlp_ratio):
                raise InputError(f"VGGT's mlp_ratio is {self.mlp_ratio}; the dinov2 stem takes whole numbers only.")

    @property
    def num_special_tokens(self) -> int:
        """1 + R: the camera token and the registers, which stand before the patches of every view."""
        return 1 + self.num_register_tokens
