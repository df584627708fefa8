"""What differs between kinds of image-text models: the form of a prompt, the place of images in it, how these are read.

A kind that is not listed is read as most are: square images of a fixed size, and a token that stands for each of an
image's. Whatever fits neither is refused when it is tried without numbers, in `Backbone.find`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

# (the model without its language part, pixels as the family's `layout` has them, the grid) to tokens [n, N, width]
Look = Callable[[Any, torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Family:
    """One way in which image-text models are made."""

    prompt: str  # with {images} and {instruction}, as the models were trained; {bos} and {eos} are the tokenizer's own
    before: str  # what stands in the prompt before each image
    after: str
    look: Look
    layout: Literal["square", "patches"] = "square"  # pixels [n, 3, S, S]; or patches [n, P, 2 * 3 * p * p], as Qwen's
    bidirectional: bool = False  # images and words all attend to each other; else each to what stands before it
    first_position: int = 0  # of the first token
    before_tokens: int = 0  # tokens of an image that are no patches, and come first


def family_of(kind: str) -> Family:
    """By the `model_type` of a model's config."""
    return _FAMILIES.get(kind, _USUAL)


def is_known(kind: str) -> bool:
    """Whether it is one of those whose hidden states have been held against transformers' own."""
    return kind in _FAMILIES


def known_kinds() -> list[str]:
    return list(_FAMILIES)


# ---- how images are read -----------------------------------------------------------------------------------


def _features(model: Any, pixels: torch.Tensor, grid: int) -> torch.Tensor:
    """For models that take images of one size."""
    found = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    tokens: torch.Tensor = found if isinstance(found, torch.Tensor) else torch.stack(list(found))
    return tokens.reshape(len(pixels), -1, tokens.shape[-1])


def _idefics(model: Any, pixels: torch.Tensor, grid: int) -> torch.Tensor:
    """For SmolVLM and Idefics3, whose own way leaves out images that are all zeros, and builds a mask of what is
    padding: nothing is, here."""
    vision = model.vision_model
    patch = model.config.vision_config.patch_size
    there = torch.ones(
        len(pixels), pixels.shape[-2] // patch, pixels.shape[-1] // patch, dtype=torch.bool, device=pixels.device
    )
    embedded = vision.embeddings(pixel_values=pixels, patch_attention_mask=there)
    hidden = vision.encoder(inputs_embeds=embedded, attention_mask=None).last_hidden_state
    tokens: torch.Tensor = model.connector(vision.post_layernorm(hidden))
    return tokens


def _qwen(model: Any, pixels: torch.Tensor, grid: int) -> torch.Tensor:
    """For Qwen's, which take patches of images of any size. What lies deeper in Qwen3-VL's image part stands beside the
    tokens: [n, N, width * (1 + depths)]."""
    visual = model.visual
    config = visual.config
    window = (config.window_size, config.patch_size) if hasattr(config, "fullatt_block_indexes") else None
    side = getattr(visual, "num_grid_per_side", None)
    told = {
        name: value if name.startswith("cu_") else value.to(pixels.device)
        for name, value in _qwen_grid(len(pixels), grid, config.spatial_merge_size, window, side).items()
    }
    images = torch.tensor([[1, grid, grid]], device="cpu").expand(len(pixels), -1)
    found = visual(pixels.flatten(0, 1), grid_thw=images, return_dict=True, **told)
    tokens = torch.cat([found.pooler_output, *(getattr(found, "deepstack_features", None) or ())], dim=-1)
    return tokens.unflatten(0, (len(pixels), -1))


@lru_cache(maxsize=16)
def _qwen_grid(
    images: int, grid: int, merge: int, window: tuple[int, int] | None, side: int | None
) -> dict[str, torch.Tensor]:
    """What Qwen's image part asks about the grids of its images, on the CPU, where it counts."""
    from transformers import vision_utils

    with torch.device("cpu"):
        grids = torch.tensor([[1, grid, grid]] * images)
        told = {
            "position_ids": vision_utils.get_vision_position_ids(grids, merge),
            "cu_seqlens": vision_utils.get_vision_cu_seqlens(grids),
        }
        if window is not None:
            index, borders = vision_utils.get_vision_window_index(grids, merge, *window)
            told |= {"window_index": index, "cu_window_seqlens": borders}
        if side is not None:
            indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
                grids, num_grid_per_side=side, align_corners=True, spatial_merge_size=merge
            )
            told |= {"interp_indices": indices, "interp_weights": weights}
        return told


# ---- the families ------------------------------------------------------------------------------------------

_CHAT = "<|im_start|>user\n{images}{instruction}<|im_end|>\n<|im_start|>assistant\n"
_QWEN2 = Family(
    prompt="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + _CHAT,
    before="<|vision_start|>",
    after="<|vision_end|>",
    look=_qwen,
    layout="patches",
)
_IDEFICS = Family(
    prompt="{bos}User:{images}{instruction}<end_of_utterance>\nAssistant:",
    before="<fake_token_around_image><global-img>",
    after="<fake_token_around_image>",
    look=_idefics,
)
_USUAL = Family(prompt="{bos}{images}{instruction}\n", before="", after="", look=_features)

_FAMILIES = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": Family(prompt=_CHAT, before="<|vision_start|>", after="<|vision_end|>", look=_qwen, layout="patches"),
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "paligemma": Family(
        prompt="{images}{bos}{instruction}\n", before="", after="", look=_features, bidirectional=True, first_position=1
    ),
    "internvl": Family(
        prompt="<|im_start|>user\n{images}\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
        before="<img>",
        after="</img>",
        look=_features,
    ),
    "florence2": Family(
        prompt="{images}{bos}{instruction}{eos}",
        before="",
        after="",
        look=_features,
        bidirectional=True,
        before_tokens=1,
    ),
    "llava": Family(prompt="{bos}USER: {images}\n{instruction} ASSISTANT:", before="", after="", look=_features),
}
