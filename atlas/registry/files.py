"""Which files of a saved model go into an artifact, and what can be said of them without loading it."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from atlas.errors import InputError

CONFIG = "config.yaml"
CARD = "README.md"
_STATE = Path("trainer") / "state.json"
_WEIGHTS = ("policy/model.safetensors", "model.safetensors")


def artifact_files(path: Path) -> dict[str, Path]:
    """{name in the artifact: file} of a checkpoint, a saved policy, any other folder, or a file.

    A checkpoint takes its run's `config.yaml` along, so that training can go on from the artifact alone. Raises
    InputError where there is nothing.
    """
    path = Path(path)
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise InputError(f"There is no model at {path}: no such file or folder.")
    root = path.resolve()
    files = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*")) if file.is_file()}
    if not files:
        raise InputError(f"There is no model at {path}: the folder is empty.")
    config = run_config(root)
    if config is not None:
        files.setdefault(CONFIG, config)
    return files


def total_bytes(files: Mapping[str, Path]) -> int:
    """The size of an artifact's files."""
    return sum(file.stat().st_size for file in files.values())


def run_config(checkpoint: Path) -> Path | None:
    """The `config.yaml` of a checkpoint's run: in the run's folder, or beside policy/ in an artifact."""
    checkpoint = checkpoint.resolve()
    if not (checkpoint / _STATE).is_file():
        return None
    return next((file for file in (checkpoint / CONFIG, checkpoint.parents[1] / CONFIG) if file.is_file()), None)


def describe_files(path: Path) -> dict[str, Any]:
    """What a saved model says of itself: parameters, file_size_mb, and of a checkpoint step, run_name and data."""
    files = artifact_files(path)
    found: dict[str, Any] = {}
    weights = next((files[name] for name in _WEIGHTS if name in files), None)
    if weights is not None:
        found["parameters"] = _count_parameters(weights)
    found["file_size_mb"] = round(total_bytes(files) / 1e6, 3)
    if _STATE.as_posix() in files:
        state = json.loads(files[_STATE.as_posix()].read_text(encoding="utf-8"))
        found |= {key: state[key] for key in ("step", "best_step", "best_value") if state.get(key) is not None}
    config = run_config(path) if path.is_dir() else None
    if config is not None:
        values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        found |= {"run_name": values.get("run_name"), "data": (values.get("data") or {}).get("path")}
    return found


def card_of(path: Path) -> str | None:
    """The model card that is saved with a policy, without its YAML head; None where there is none."""
    for file in (path / "policy" / CARD, path / CARD):
        if file.is_file():
            return without_head(file.read_text(encoding="utf-8"))
    return None


def without_head(card: str) -> str:
    """A card without the YAML block that the Hugging Face hub reads, and wandb would show as text."""
    return re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).lstrip()


def link_or_copy(source: Path, target: Path) -> None:
    """Another name for a file, which costs no space; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _count_parameters(weights: Path) -> int | None:
    """The number of elements in a safetensors file, from its header alone; None for another kind of file."""
    try:
        with open(weights, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > weights.stat().st_size:
                return None
            header = json.loads(file.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
