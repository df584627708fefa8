"""Small image models with random weights, in the published layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WIDTH, PATCH = 24, 8
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "image_size": 16,
}
TEXT = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE_KINDS = ("dinov3", "dinov2", "dinov2-registers", "siglip", "siglip2", "clip", "vit")


def make_image_model(kind: str) -> Any:
    """A whole random model of its kind: with text tower, pooler or head, as published."""
    import transformers as hf

    makers: dict[str, Callable[[], Any]] = {
        "dinov3": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SIZES, num_register_tokens=4)),
        "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZES, mlp_ratio=2)),
        "dinov2-registers": lambda: hf.Dinov2WithRegistersModel(
            hf.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=3)
        ),
        "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=SIZES)),
        "siglip2": lambda: hf.Siglip2Model(
            hf.Siglip2Config(text_config=TEXT, vision_config={**SIZES, "num_patches": 4})
        ),
        "clip": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES)),
        "vit": lambda: hf.ViTModel(hf.ViTConfig(**SIZES)),
    }
    torch.manual_seed(0)
    return makers[kind]().eval()


def save_image_model(kind: str, folder: Path) -> Path:
    """As on the hub: config.json, model.safetensors, preprocessor_config.json."""
    if not folder.exists():
        make_image_model(kind).save_pretrained(folder)
        settings = {"do_normalize": True, "image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
