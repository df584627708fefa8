"""The descriptions of the published lerobot/pi0_base and lerobot/pi05_base, for their sizes without a network."""

from __future__ import annotations

from pathlib import Path

from atlas.policies.pi.pi_settings import default_normalization
from atlas.policies.published.description import Description
from atlas.policies.published.lerobot_folder import LeRobotFolder
from atlas.policies.published.processor_files import MODES, ProcessorFiles, TokenizerStep

TOKENIZER = "google/paligemma-3b-pt-224"
_BASES = {"hf:lerobot/pi0_base": ("pi0", 48), "hf:lerobot/pi05_base": ("pi05", 200)}
_CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def base_description(reference: str) -> Description | None:
    """A base model's description, by its hub reference; None for any other reference."""
    if reference not in _BASES:
        return None
    kind, words = _BASES[reference]
    config = {
        "type": kind,
        "normalization_mapping": default_normalization(kind),
        "input_features": {
            **{f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 224, 224]} for name in _CAMERAS},
            "observation.state": {"type": "STATE", "shape": [32]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [32]}},
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "chunk_size": 50,
        "max_state_dim": 32,
        "max_action_dim": 32,
        "image_resolution": [224, 224],
        "num_inference_steps": 10,
        "tokenizer_max_length": words,
    }
    folder = LeRobotFolder(Path(reference.removeprefix("hf:")), config, reference)
    modes = {name: MODES[mode] for name, mode in default_normalization(kind).items() if name != "VISUAL"}
    return Description(folder, ProcessorFiles(modes, tokenizer=TokenizerStep(TOKENIZER, words, "max_length")))
