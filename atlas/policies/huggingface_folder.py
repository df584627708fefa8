"""Models from the Hugging Face hub or folders: finding the folder, and reading config, weights and tokenizer strictly.

transformers itself is lenient: weights missing from a file are initialised at random, and a folder without a tokenizer
yields an empty one. Here each of these is an InputError that begins with `key`, the setting that names the model.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atlas.errors import InputError, first_line
from atlas.system.documents import read_json
from atlas.system.hub import Alternative, fetch_folder

UNREADABLE = Exception  # the library trusts the files, and may raise anything for a wrong one

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_DESCRIPTION = ("*.json", "*.txt", "*.model", "*.tiktoken")  # config, tokenizer, image preprocessing
_SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")
_TORCH = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")  # older models have only these; read without unpickling code


# ---- the folder ------------------------------------------------------------------------------------------


def find_model(reference: str | Path, weights: bool, key: str, wanted: str, example: str) -> Path:
    """The folder of a model: `reference` itself, or a hub model in the hub's own cache.

    A hub model is downloaded if it is not in the cache; cached files are used as they are, also offline, so that a
    resumed run finds the same weights. Without `weights`, only the model's description is downloaded. wanted: what the
    folder must hold, and example: a name on the hub, for messages. Raises InputError if there is no such model.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return path
    if not _HUB_NAME.fullmatch(str(reference)):
        raise InputError(
            f"{key}: there is no folder {path}; give a folder with a Hugging Face model ({wanted}), or the name of one "
            f"on the hub, such as {example}."
        )
    return _from_hub(str(reference), weights, key)


def _from_hub(name: str, weights: bool, key: str) -> Path:
    def alternative(*files: str) -> Alternative:
        def complete(folder: Path) -> bool:
            return (folder / "config.json").is_file() and (not files or any(any(folder.glob(f)) for f in files))

        return Alternative((*_DESCRIPTION, *files), complete)

    lacking = "it lacks a config.json" + (", or has neither safetensors nor PyTorch weights" if weights else "")
    alternatives = [alternative(*_SAFETENSORS), alternative(*_TORCH)] if weights else [alternative()]
    return fetch_folder(name, key, alternatives, lacking)


def read_description(folder: Path, name: str, key: str) -> Any:
    """transformers' config from config.json. Raises InputError."""
    from transformers import AutoConfig

    with quiet():
        try:
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except UNREADABLE as error:
            raise InputError(f"{key}: the config of {name} cannot be read: {first_line(error)}") from None


# ---- the weights -----------------------------------------------------------------------------------------


def read_weights(
    kind: Any,
    config: Any,
    folder: Path,
    name: str,
    key: str,
    dtype: torch.dtype | None = None,
    may_lack: Callable[[str], bool] = lambda tensor: False,
    **options: Any,
) -> Any:
    """A model of the class `kind` with its weights, in eval mode; `dtype` None: as they are stored.

    may_lack: whether the file may lack a tensor, by its name. options: for the class. Raises InputError that names
    tensors that are missing or have another shape, or the file that cannot be read.
    """
    with quiet():
        try:
            model, found = kind.from_pretrained(
                folder,
                config=config,
                dtype=dtype or "auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                local_files_only=True,
                **options,
            )
        except UNREADABLE as error:
            raise InputError(f"{key}: the weights of {name} cannot be read: {first_line(error)}") from None
    problems = [f"'{tensor}' is missing" for tensor in sorted(found["missing_keys"]) if not may_lack(tensor)]
    problems += [
        f"'{tensor}' has shape {list(stored)}, expected {list(expected)}"
        for tensor, stored, expected in sorted(found["mismatched_keys"])
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise InputError(
            f"{key}: the weights of {name} do not fit {kind.__name__} as described in its config.json: "
            f"{'; '.join(problems[:3])}{more}."
        )
    return model


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of a model's outermost module lists: its layers, whatever the model calls them."""
    if isinstance(model, nn.ModuleList):
        return [block for m in model for block in (repeated_blocks(m) if isinstance(m, nn.ModuleList) else [m])]
    return [block for child in model.children() for block in repeated_blocks(child)]


# ---- its inputs ------------------------------------------------------------------------------------------


def read_tokenizer(folder: Path, name: str, key: str) -> Any:
    """The tokenizer in a model's folder. Raises InputError if there is none, or it cannot be read."""
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            # Some classes make an empty tokenizer if there is no file; a few, such as ByT5's, need none.
            files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
            if not tokenizer.vocab_files_names:
                files.add("tokenizer_config.json")
            if any((folder / file).is_file() for file in files):
                return tokenizer
            why = f"the folder {folder} holds none of {', '.join(sorted(files))}"
        except UNREADABLE as error:
            why = first_line(error)
    if any(folder.glob("*.model")) and importlib.util.find_spec("sentencepiece") is None:
        why = "it is a SentencePiece model; run `pip install sentencepiece`"
    raise InputError(f"{key}: the tokenizer of {name} cannot be read: {why}.")


def read_image_settings(folder: Path, name: str, key: str) -> dict[str, Any]:
    """The settings for images in a model's folder: preprocessor_config.json, or the part of processor_config.json that
    replaces it in newer folders. Raises InputError if there is neither."""
    for file in ("preprocessor_config.json", "processor_config.json"):
        try:
            settings = read_json(folder / file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InputError(f"{key}: {folder / file} cannot be read: {first_line(error)}") from None
        if isinstance(settings, dict):
            settings = settings.get("image_processor", settings if file.startswith("pre") else None)
        if isinstance(settings, dict):
            return settings
    raise InputError(
        f"{key}: {name} does not say how images are scaled for it: its folder {folder} has no preprocessor_config.json."
    )


# ---- around transformers ---------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers; what matters in them is an InputError here."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
