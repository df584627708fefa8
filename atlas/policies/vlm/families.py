"""The differences between kinds of image-text models: the prompt's form, the place of images in it, how they are read.

A kind that is not listed is read as most are: square images of a fixed size, with one placeholder token for each of an
image's tokens. A kind that fits neither is refused when it is tried without weights, in `Backbone.find`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

# (the model without its language part, pixels in the family's `layout`, the grid) to tokens [n, N, width]
Look = Callable[[Any, torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Family:
    """Image-text models that are read in the same way."""

    prompt: str  # the training prompt, with {images} and {instruction}; {bos} and {eos} are the tokenizer's tokens
    before: str  # the text before each image in the prompt
    after: str
    look: Look
    layout: Literal["square", "patches"] = "square"  # pixels [n, 3, S, S]; or patches [n, P, 2 * 3 * p * p], as Qwen's
    bidirectional: bool = False  # whether images and words all attend to each other; otherwise attention is causal
    first_position: int = 0  # the position of the first token
    before_tokens: int = 0  # an image's leading tokens that are not patches


def family_of(kind: str) -> Family:
    """The family of a `model_type` in a model's config."""
    return _FAMILIES.get(kind, _USUAL)


def is_known(kind: str) -> bool:
    """Whether this kind's hidden states have been compared with those of transformers."""
    return kind in _FAMILIES


def known_kinds() -> list[str]:
    return list(_FAMILIES)


# ---- how images are read -----------------------------------------------------------------------------------


def _features(model: Any, pixels: torch.Tensor, grid: int) -> torch.Tensor:
    """Compute the features of models that take images of one size."""
    found = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    tokens: torch.Tensor = found if isinstance(found, torch.Tensor) else torch.stack(list(found))
    return tokens.reshape(len(pixels), -1, tokens.shape[-1])


def _idefics(model: Any, pixels: torch.Tensor, grid: int) -> torch.Tensor:
    """Compute the features of SmolVLM and Idefics3, whose own method skips images that are all zeros, and builds a
    padding mask, which is not needed here."""
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
    """Compute the features of Qwen's models, which take patches of images of any size. The deeper features of
    Qwen3-VL's image part are appended to the tokens: [n, N, width * (1 + depths)]."""
    visual = model.visual
    config = visual.config
    window = (config.window_size, config.patch_size) if hasattr(config, "fullatt_block_indexes") else None
    side = getattr(visual, "num_grid_per_side", None)
    grid_inputs = {
        name: value if name.startswith("cu_") else value.to(pixels.device)
        for name, value in _qwen_grid(len(pixels), grid, config.spatial_merge_size, window, side).items()
    }
    images = torch.tensor([[1, grid, grid]], device="cpu").expand(len(pixels), -1)
    found = visual(pixels.flatten(0, 1), grid_thw=images, return_dict=True, **grid_inputs)
    tokens = torch.cat([found.pooler_output, *(getattr(found, "deepstack_features", None) or ())], dim=-1)
    return tokens.unflatten(0, (len(pixels), -1))


@lru_cache(maxsize=16)
def _qwen_grid(
    images: int, grid: int, merge: int, window: tuple[int, int] | None, side: int | None
) -> dict[str, torch.Tensor]:
    """The inputs of Qwen's image part that follow from the grids of its images, computed on the CPU."""
    from transformers import vision_utils

    with torch.device("cpu"):
        grids = torch.tensor([[1, grid, grid]] * images)
        inputs = {
            "position_ids": vision_utils.get_vision_position_ids(grids, merge),
            "cu_seqlens": vision_utils.get_vision_cu_seqlens(grids),
        }
        if window is not None:
            index, borders = vision_utils.get_vision_window_index(grids, merge, *window)
            inputs |= {"window_index": index, "cu_window_seqlens": borders}
        if side is not None:
            indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
                grids, num_grid_per_side=side, align_corners=True, spatial_merge_size=merge
            )
            inputs |= {"interp_indices": indices, "interp_weights": weights}
        return inputs


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
