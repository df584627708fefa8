"""The sizes of pi0's and pi0.5's networks. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from atlas.config.section import Layers, Positive, Size

_CHECKED = ConfigDict(extra="forbid")
_MOST_WORDS = 2**22


@dataclass(frozen=True, config=_CHECKED)
class GemmaSizes:
    """The sizes of a stack of Gemma layers. Queries have num_heads x head_dim numbers, keys and values num_kv_heads x
    head_dim, independent of the width."""

    width: Size
    depth: Layers
    mlp_dim: Size
    num_heads: Size
    num_kv_heads: Size
    head_dim: Size

    @model_validator(mode="after")
    def _heads_agree(self) -> GemmaSizes:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads is {self.num_heads}, not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number")
        return self


@dataclass(frozen=True, config=_CHECKED)
class SiglipSizes:
    """The sizes of the vision tower, with transformers' names."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    patch_size: Size
    image_size: Size
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def patches(self) -> int:
        """The number of patches in an image; pixels that do not fill a patch are cut off."""
        side: int = self.image_size // self.patch_size
        return side * side

    @model_validator(mode="after")
    def _heads_agree(self) -> SiglipSizes:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size is {self.image_size}, less than patch_size {self.patch_size}")
        return self


GEMMA = {  # the variants that a LeRobot config names
    "gemma_2b": GemmaSizes(width=2048, depth=18, mlp_dim=16384, num_heads=8, num_kv_heads=1, head_dim=256),
    "gemma_300m": GemmaSizes(width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256),
}
SO400M = SiglipSizes(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    patch_size=14,
    image_size=224,
)


@dataclass(frozen=True, config=_CHECKED)
class BackboneSizes:
    """The sizes of PaliGemma and the expert; by default the published ones.

    A LeRobot config.json only names variants; a folder with other sizes has them in a backbone.json.
    """

    text: GemmaSizes = GEMMA["gemma_2b"]
    expert: GemmaSizes = GEMMA["gemma_300m"]
    vision: SiglipSizes = SO400M
    vocab_size: Positive = 257152
    projection_dim: Size | None = None  # the width of an image's tokens, which must be the text's
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"

    @model_validator(mode="after")
    def _streams_agree(self) -> BackboneSizes:
        for name in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            text, expert = getattr(self.text, name), getattr(self.expert, name)
            if text != expert:
                raise ValueError(
                    f"{name} is {text} in text and {expert} in expert; they must agree, as the two attend together"
                )
        if self.projection_dim not in (None, self.text.width):
            raise ValueError(f"projection_dim is {self.projection_dim}, but text's width is {self.text.width}")
        if self.vocab_size > _MOST_WORDS:
            raise ValueError(f"vocab_size is {self.vocab_size}, expected at most {_MOST_WORDS}")
        return self

    @property
    def word_scale(self) -> float:
        """The factor by which the word table's rows are scaled before they enter the transformer."""
        return math.sqrt(self.text.width)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
