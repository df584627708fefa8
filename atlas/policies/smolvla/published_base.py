"""The description of the published lerobot/smolvla_base, for its sizes without its files."""

from __future__ import annotations

from pathlib import Path

from atlas.policies.published.description import Description
from atlas.policies.published.lerobot_folder import LeRobotFolder
from atlas.policies.published.processor_files import ProcessorFiles, TokenizerStep

BASE = "hf:lerobot/smolvla_base"
_VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
_CONFIG = {
    "type": "smolvla",
    "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [6]},
        **{f"observation.images.camera{n}": {"type": "VISUAL", "shape": [3, 256, 256]} for n in (1, 2, 3)},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [6]}},
    "chunk_size": 50,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "resize_imgs_with_padding": [512, 512],
    "empty_cameras": 0,
    "tokenizer_max_length": 48,
    "num_steps": 10,
    "freeze_vision_encoder": True,
    "train_expert_only": True,
    "train_state_proj": True,
    "vlm_model_name": _VLM,
    "attention_mode": "cross_attn",
    "prefix_length": 0,
    "pad_language_to": "max_length",
    "num_expert_layers": 0,
    "num_vlm_layers": 16,
    "self_attn_every_n_layers": 2,
    "expert_width_multiplier": 0.75,
}


def base_description(reference: str) -> Description | None:
    """The base model's description, by its hub reference; None for any other reference."""
    if reference != BASE:
        return None
    folder = LeRobotFolder(Path(reference.removeprefix("hf:")), _CONFIG, reference)
    modes = {"STATE": "mean_std", "ACTION": "mean_std"}
    return Description(folder, ProcessorFiles(modes, tokenizer=TokenizerStep(_VLM, 48, "max_length")))
