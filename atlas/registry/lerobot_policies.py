"""Policies in LeRobot's form: the files of such a folder, and how one is recognised."""

from __future__ import annotations

from pathlib import Path

from atlas.errors import InputError
from atlas.system.documents import read_json
from atlas.system.file_store import CONFIG

CONFIG_JSON, WEIGHTS = "config.json", "model.safetensors"
LEROBOT_NEEDED = (CONFIG_JSON, WEIGHTS)
LEROBOT_FILES = (*LEROBOT_NEEDED, "policy_*.json", "policy_*.safetensors")
LEROBOT_BESIDE = ("tokenizer/*", "vlm/*")  # in newer folders, and in those that Atlas writes


def is_lerobot_policy(folder: Path) -> bool:
    """Whether a folder is LeRobot's rather than one that Atlas has saved."""
    return (folder / CONFIG_JSON).is_file() and not (folder / CONFIG).exists()


def check_lerobot_policy(folder: Path) -> None:
    """Raises InputError if a folder lacks weights, or names no type."""
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"The LeRobot policy in {folder} lacks {WEIGHTS}.")
    lerobot_kind(folder)


def lerobot_kind(folder: Path) -> str:
    """The type that config.json names, such as 'smolvla'. Raises InputError."""
    file = folder / CONFIG_JSON
    try:
        kind = read_json(file)["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not the config of a LeRobot policy ({error!r:.100}).") from None
    if not isinstance(kind, str):
        raise InputError(f"{file} is not the config of a LeRobot policy: its type is {kind!r:.40}.")
    return kind
