"""Small image-text models with random weights, written as they are published, and a tokenizer for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WIDTH, LAYERS = 32, 3
WORDS = "pick up the red green blue cube and put it on plate open close drawer user assistant :".split()
MARKS = (
    "<pad> </s> <unk> <s> <bos> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <image> "
    "<fake_token_around_image> <global-img> <end_of_utterance> <img> </img> <IMG_CONTEXT>"
).split()
VOCABULARY = len(MARKS) + len(WORDS) + 8
IMAGE_TOKENS = {"qwen": "<|image_pad|>", "internvl": "<IMG_CONTEXT>"}
OTHER_KINDS = ("qwen2_vl", "idefics3", "paligemma2")  # much like one of the next
VLM_KINDS = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "paligemma", "internvl", "florence2", "llava")


def make_tokenizer() -> Any:
    """A word a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(MARKS + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )
    made.add_special_tokens({"additional_special_tokens": MARKS[4:]})
    return made


def image_token(kind: str) -> int:
    token = next((token for start, token in IMAGE_TOKENS.items() if kind.startswith(start)), "<image>")
    return MARKS.index(token)


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "pad_token_id": 0,
        **more,
    }


def _vit(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**sizes, "patch_size": 8, "image_size": 32, **more}


def _qwen_vision(**more: Any) -> dict[str, Any]:
    return {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, **more}


def make_image_text_model(kind: str) -> Any:
    """A whole random model of its kind, with the head that speaks."""
    import transformers as hf

    mrope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
    token = image_token(kind)
    makers: dict[str, Callable[[], Any]] = {
        "qwen2_5_vl": lambda: hf.Qwen2_5_VLForConditionalGeneration(
            hf.Qwen2_5_VLConfig(
                text_config=_text(**mrope),
                vision_config=_qwen_vision(
                    intermediate_size=24, out_hidden_size=WIDTH, window_size=16, fullatt_block_indexes=[1]
                ),
                image_token_id=token,
            )
        ),
        "qwen3_vl": lambda: hf.Qwen3VLForConditionalGeneration(
            hf.Qwen3VLConfig(
                text_config=_text(**mrope),
                vision_config=_qwen_vision(
                    intermediate_size=24,
                    out_hidden_size=WIDTH,
                    num_position_embeddings=16,
                    deepstack_visual_indexes=[0, 1],
                ),
                image_token_id=token,
            )
        ),
        "smolvlm": lambda: hf.SmolVLMForConditionalGeneration(
            hf.SmolVLMConfig(
                text_config={"model_type": "llama", **_text()},
                vision_config=_vit(),
                scale_factor=2,
                image_token_id=token,
                pad_token_id=0,
            )
        ),
        "paligemma": lambda: hf.PaliGemmaForConditionalGeneration(
            hf.PaliGemmaConfig(
                text_config={"model_type": "gemma", **_text()},
                vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_vit()},
                projection_dim=WIDTH,
                image_token_index=token,
            )
        ),
        "internvl": lambda: hf.InternVLForConditionalGeneration(
            hf.InternVLConfig(
                text_config={"model_type": "qwen2", **_text()},
                vision_config=_vit(image_size=[32, 32], patch_size=[8, 8]),
                image_token_id=token,
            )
        ),
        "florence2": lambda: hf.Florence2ForConditionalGeneration(
            hf.Florence2Config(
                text_config={
                    "model_type": "bart",
                    "vocab_size": VOCABULARY,
                    "d_model": WIDTH,
                    "encoder_layers": LAYERS,
                    "decoder_layers": 1,
                    "encoder_ffn_dim": 48,
                    "decoder_ffn_dim": 48,
                    "encoder_attention_heads": 2,
                    "decoder_attention_heads": 2,
                    "max_position_embeddings": 96,
                },
                vision_config={
                    "embed_dim": [8, 8, 16, 16],
                    "depths": [1, 1, 1, 1],
                    "num_heads": [1, 1, 2, 2],
                    "num_groups": [1, 1, 2, 2],
                    "window_size": 2,
                    "projection_dim": WIDTH,
                },
                image_token_id=token,
            )
        ),
        "llava": lambda: hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(
                text_config={"model_type": "llama", **_text()},
                vision_config={"model_type": "clip_vision_model", **_vit()},
                image_token_index=token,
            )
        ),
    }
    makers |= {
        "qwen2_vl": lambda: hf.Qwen2VLForConditionalGeneration(
            hf.Qwen2VLConfig(
                text_config=_text(**mrope),
                vision_config={
                    **_qwen_vision(embed_dim=16, mlp_ratio=2),
                    "hidden_size": WIDTH,
                },
                image_token_id=token,
            )
        ),
        "idefics3": lambda: hf.Idefics3ForConditionalGeneration(
            hf.Idefics3Config(
                text_config={"model_type": "llama", **_text()},
                vision_config=_vit(),
                scale_factor=2,
                image_token_id=token,
                pad_token_id=0,
            )
        ),
        "paligemma2": lambda: hf.PaliGemmaForConditionalGeneration(
            hf.PaliGemmaConfig(
                text_config={"model_type": "gemma2", **_text(query_pre_attn_scalar=16)},
                vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_vit()},
                projection_dim=WIDTH,
                image_token_index=token,
            )
        ),
    }
    torch.manual_seed(0)
    return makers[kind]().eval()


def image_settings(kind: str) -> dict[str, Any]:
    """What preprocessor_config.json holds, in the form in which the kind has it."""
    scale = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "rescale_factor": 1 / 255}
    if kind.startswith("qwen"):
        more: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
        return {**scale, **more, "min_pixels": 256, "max_pixels": 4096, "resample": 3}
    if kind in ("smolvlm", "idefics3"):
        return {**scale, "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}, "resample": 1}
    if kind == "llava":
        crop = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
        return {**scale, **crop, "size": {"shortest_edge": 32}, "resample": 3}
    return {**scale, "size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 3}


def save_image_text_model(kind: str, folder: Path) -> Path:
    """As on the hub: config.json, model.safetensors, tokenizer and preprocessor_config.json."""
    if not folder.exists():
        make_image_text_model(kind).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(image_settings(kind)))
    return folder
