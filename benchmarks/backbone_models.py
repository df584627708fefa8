"""The sizes of published backbones, as in their config.json, and folders that describe one without weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_SMALL = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
_MARKS = (
    "<pad> </s> <unk> <s> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <image> "
    "<fake_token_around_image> <global-img> <end_of_utterance> <img> </img> <IMG_CONTEXT>"
).split()


@dataclass(frozen=True)
class Published:
    """A backbone as it is published."""

    name: str  # on the hub
    config: dict[str, Any]
    image_size: int  # pixels of the images that it is given here
    images: dict[str, Any]  # what preprocessor_config.json says of them
    overrides: tuple[str, ...] = ()


def _square(size: int) -> dict[str, Any]:
    return {"size": {"height": size, "width": size}}


def _dinov3(name: str, sizes: dict[str, int]) -> Published:
    config = {"model_type": "dinov3_vit", "patch_size": 16, "num_register_tokens": 4, **sizes}
    return Published(f"facebook/dinov3-{name}-pretrain-lvd1689m", config, 224, {})


def _siglip2(name: str, size: int, patch: int, sizes: dict[str, int], pixels: int) -> Published:
    vision = {"image_size": size, "patch_size": patch, **sizes}
    return Published(f"google/siglip2-{name}", {"model_type": "siglip", "vision_config": vision}, pixels, {})


ENCODERS = (
    _dinov3("vits16", _SMALL),
    _dinov3("vitb16", _BASE),
    _dinov3("vitl16", _LARGE),
    Published("facebook/dinov2-base", {"model_type": "dinov2", "patch_size": 14, "image_size": 518, **_BASE}, 224, {}),
    _siglip2("base-patch16-224", 224, 16, _BASE, 224),
    _siglip2("so400m-patch14-224", 224, 14, _SO400M, 224),
)

T5_BASE = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "num_heads": 12,
}


def _smolvlm(name: str, text: dict[str, int], vision: dict[str, int], size: int, patch: int, scale: int) -> Published:
    config = {
        "model_type": "smolvlm",
        "text_config": {"model_type": "llama", "vocab_size": 49280, **text},
        "vision_config": {"image_size": size, "patch_size": patch, **vision},
        "scale_factor": scale,
    }
    return Published(f"HuggingFaceTB/{name}", config, size, {"max_image_size": {"longest_edge": size}})


def _heads(width: int, hidden: int, layers: int, heads: int, keys: int, **more: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        **more,
    }


def _internvl(name: str, text: dict[str, int]) -> Published:
    config = {
        "model_type": "internvl",
        "text_config": {"model_type": "qwen2", "vocab_size": 151674, **text},
        "vision_config": {"model_type": "internvl_vision", "image_size": [448, 448], "patch_size": [14, 14], **_LARGE},
    }
    return Published(f"OpenGVLab/{name}", config, 448, _square(448))


def _qwen3(name: str, width: int, text: dict[str, int]) -> Published:
    rope = {"rope_type": "default", "rope_theta": 5000000, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": width,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    config = {
        "model_type": "qwen3_vl",
        "text_config": {"vocab_size": 151936, "rope_parameters": rope, **text},
        "vision_config": vision,
    }
    return Published(f"Qwen/{name}", config, 224, {"patch_size": 16, "min_pixels": 224 * 224})


_QWEN25_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN25_ROPE = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}

IMAGE_TEXT_MODELS = (
    Published(
        "florence-community/Florence-2-base",
        {
            "model_type": "florence2",
            "text_config": {
                "model_type": "bart",
                "vocab_size": 51289,
                "d_model": 768,
                "encoder_layers": 6,
                "decoder_layers": 6,
                "encoder_ffn_dim": 3072,
                "decoder_ffn_dim": 3072,
                "encoder_attention_heads": 12,
                "decoder_attention_heads": 12,
                "max_position_embeddings": 1024,
            },
            "vision_config": {"projection_dim": 768},
        },
        384,
        _square(768),
        ("model.backbone.image_size=384",),  # two views of its own 768 pixels have more tokens than it has positions
    ),
    _smolvlm("SmolVLM2-256M-Video-Instruct", _heads(576, 1536, 30, 9, 3, head_dim=64), _BASE, 512, 16, 4),
    _smolvlm("SmolVLM2-500M-Video-Instruct", _heads(960, 2560, 32, 15, 5, head_dim=64), _BASE, 512, 16, 4),
    _smolvlm("SmolVLM2-2.2B-Instruct", _heads(2048, 8192, 24, 32, 32, head_dim=64), _SO400M, 384, 14, 3),
    _internvl("InternVL3-1B-hf", _heads(896, 4864, 24, 14, 2)),
    _internvl("InternVL3-2B-hf", _heads(1536, 8960, 28, 12, 2)),
    _qwen3("Qwen3-VL-2B-Instruct", 2048, _heads(2048, 6144, 28, 16, 8, head_dim=128)),
    _qwen3("Qwen3-VL-4B-Instruct", 2560, _heads(2560, 9728, 36, 32, 8, head_dim=128)),
    Published(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        {
            "model_type": "qwen2_5_vl",
            "text_config": {"vocab_size": 151936, "rope_parameters": _QWEN25_ROPE, **_heads(2048, 11008, 36, 16, 2)},
            "vision_config": _QWEN25_VISION,
        },
        224,
        {"patch_size": 14, "min_pixels": 3136},
    ),
    Published(
        "google/paligemma-3b-pt-224",
        {
            "model_type": "paligemma",
            "text_config": {"model_type": "gemma", "vocab_size": 257216, **_heads(2048, 16384, 18, 8, 1, head_dim=256)},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
                "image_size": 224,
                "patch_size": 14,
                **_SO400M,
            },
            "projection_dim": 2048,
        },
        224,
        _square(224),
    ),
)


def describe_model(model: Published, folder: Path) -> Path:
    """A folder as on the hub, but for the weights, and with a tokenizer of a few words (a word a token)."""
    folder.mkdir(parents=True)
    marks = [mark for mark in ("<|image_pad|>", "<IMG_CONTEXT>", "<image>")]
    kind = model.config["model_type"]
    token = marks[0] if kind.startswith("qwen") else marks[1] if kind == "internvl" else marks[2]
    config = {**model.config, "image_token_id": _MARKS.index(token)}
    if kind == "paligemma":
        config["image_token_index"] = config.pop("image_token_id")
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **model.images}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    save_tokenizer(folder)
    return folder


def describe_t5(folder: Path) -> Path:
    """A folder with the config of T5's base size and a tokenizer of a few words."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(T5_BASE))
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """One that knows the marks of all families, and the words of the example's instruction."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_MARKS, *"pick up the red cube".split()]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )
    made.add_special_tokens({"additional_special_tokens": _MARKS[4:]})
    made.save_pretrained(folder)
