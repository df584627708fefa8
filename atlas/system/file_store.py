"""The files of a saved model that go into an artifact, and what can be told about them without loading the model."""

from __future__ import annotations

import math
import os
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atlas.errors import InputError, first_line
from atlas.system.documents import LARGEST_JSON, parse_json, read_json, read_yaml
from atlas.system.files import follow

CONFIG = "config.yaml"  # of a run, of a policy, and of anything else made from a config
CARD = "README.md"
RESULTS = "results.json"  # of a run, once it is finished
_STATE = Path("trainer") / "state.json"
_LARGEST_CARD = 2**20  # bytes; a longer card is cut off here
_MOST_AXES = 64  # of a tensor
_WEIGHTS = ("policy/model.safetensors", "model.safetensors")


def artifact_files(path: Path) -> dict[str, Path]:
    """{name in the artifact: file} of a checkpoint, a saved policy, any other folder, or a file.

    A checkpoint includes its run's `config.yaml`, so training can resume from the artifact alone. Raises InputError if
    nothing is there, and if a link leads out of the folder: its target is not part of the model.
    """
    path = follow(Path(path))
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise InputError(f"There is no model at {path}: no such file or folder.")
    root = path.resolve()
    files = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*")) if file.is_file()}
    if not files:
        raise InputError(f"There is no model at {path}: the folder is empty.")
    for name, file in files.items():
        _refuse_link(file, root, name)
    config = run_config(root)
    if config is not None:
        _refuse_link(config, config.parent, CONFIG)
        files.setdefault(CONFIG, config)
    return files


def _refuse_link(file: Path, folder: Path, name: str) -> None:
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{folder / name} is a link to {file.resolve()}, outside the model's folder. If that file belongs to the "
            "model, replace the link with a copy; otherwise remove it."
        )


def total_bytes(files: Mapping[str, Path]) -> int:
    """The size of an artifact's files."""
    return sum(file.stat().st_size for file in files.values())


def run_config(checkpoint: Path) -> Path | None:
    """The `config.yaml` of a checkpoint's run: beside policy/ in an artifact, or in the run's folder. The latter must
    contain `checkpoints/`: a config.yaml above a folder of any other name may be anybody's."""
    checkpoint = follow(checkpoint).resolve()
    if not (checkpoint / _STATE).is_file():
        return None
    run = [checkpoint.parents[1] / CONFIG] if checkpoint.parent.name == "checkpoints" else []
    return next((file for file in (checkpoint / CONFIG, *run) if file.is_file()), None)


def describe_files(path: Path) -> dict[str, Any]:
    """Read what a saved model says about itself: parameters, file_size_mb, and for a checkpoint step, run_name and
    data; for the best one of a finished run also success, its last evaluation: env, episodes and success_rate."""
    files = artifact_files(path)
    found: dict[str, Any] = {}
    weights = next((files[name] for name in _WEIGHTS if name in files), None)
    if weights is not None:
        found["parameters"] = _count_parameters(weights)
    found["file_size_mb"] = round(total_bytes(files) / 1e6, 3)
    if _STATE.as_posix() in files:
        state = _keys_of(files[_STATE.as_posix()], read_json)
        found |= {key: state[key] for key in ("step", "best_step", "best_value") if state.get(key) is not None}
    config = run_config(path) if path.is_dir() else None
    if config is not None:
        values = _keys_of(config, read_yaml)
        data = values.get("data")
        found |= {"run_name": values.get("run_name"), "data": data.get("path") if isinstance(data, dict) else None}
        found |= _success(follow(path).resolve(), config.with_name(RESULTS))
    return found


def _success(checkpoint: Path, results: Path) -> dict[str, Any]:
    """The success of a run's last evaluation, if it was this checkpoint's."""
    values = _keys_of(results, read_json) if results.is_file() else {}
    told, best = values.get("final_evaluation"), Path(str(values.get("best_checkpoint"))).name
    if best != checkpoint.name or not isinstance(told, dict):
        return {}
    kept = {key: told.get(key) for key in ("env", "episodes", "success_rate")}
    return {"success": kept} if [type(value) for value in kept.values()] == [str, int, float] else {}


def _keys_of(file: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    try:
        values = read(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {first_line(error)}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} is damaged: it holds no keys.")
    return values


def card_of(path: Path) -> str | None:
    """The model card saved with a policy, without its YAML header; None if there is none."""
    card = whole_card(path)
    return None if card is None else without_head(card)


def whole_card(path: Path) -> str | None:
    """The model card saved with a policy, with the header that the Hugging Face hub reads; None if there is none."""
    for file in (path / "policy" / CARD, path / CARD):
        if file.is_file():
            with file.open("rb") as opened:
                return opened.read(_LARGEST_CARD).decode("utf-8", errors="replace")
    return None


def without_head(card: str) -> str:
    """A card without the YAML block that the Hugging Face hub reads and wandb would show as text."""
    return re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).lstrip()


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, which takes no space; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _count_parameters(weights: Path) -> int | None:
    """The number of elements in a safetensors file, from its header alone; None for another kind of file."""
    try:
        with open(weights, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_JSON:
                return None
            header = parse_json(file.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        # A longer shape is not a tensor's, and its product would take hours.
        return None if any(len(shape) > _MOST_AXES for shape in shapes) else sum(map(math.prod, shapes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
