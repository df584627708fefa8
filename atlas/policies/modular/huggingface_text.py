"""Reading text models of the Hugging Face hub or of folders: the folder, the text tower, its tokenizer; all strictly.

transformers itself is lenient: weights that a file lacks are drawn at random, and a folder without a tokenizer gives an
empty one. Here each of these is an InputError.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from atlas.errors import InputError, first_line
from atlas.policies.modular.parts import LANGUAGE_KEY as KEY
from atlas.system.hub import Alternative, fetch_folder

# Parts that some kinds have on top of the last hidden states, which are all that is read here: a pooler, SigLIP's head.
# They are left out where the kind allows it. Where it does not, files may lack them and they are not trained.
UNREAD = ("pooler", "head")

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_DESCRIPTION = ("*.json", "*.txt", "*.model", "*.tiktoken")  # config and tokenizer
_SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")
_TORCH = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")  # older models have only these; read without unpickling code
_UNREADABLE = Exception  # the library trusts the files: of one that is wrong it raises whatever it stumbles over


# ---- the folder ------------------------------------------------------------------------------------------


def find_model(reference: str | Path, weights: bool) -> Path:
    """The folder of a model: `reference` itself, or a model of the hub in the hub's own cache.

    A name on the hub is downloaded where it is not in the cache; what is there is used as it is, also offline, so that
    a run that goes on later finds the same weights. Without `weights`, only what describes the model is fetched.
    Raises InputError where there is none.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return path
    if not _HUB_NAME.fullmatch(str(reference)):
        raise InputError(
            f"{KEY}: there is no folder {path}; give a folder with a Hugging Face model (config.json, weights and "
            "tokenizer), or the name of one on the hub, such as google-t5/t5-small."
        )
    return _from_hub(str(reference), weights)


def _from_hub(name: str, weights: bool) -> Path:
    def alternative(*files: str) -> Alternative:
        def complete(folder: Path) -> bool:
            return (folder / "config.json").is_file() and (not files or any(any(folder.glob(f)) for f in files))

        return Alternative((*_DESCRIPTION, *files), complete)

    lacking = "it lacks a config.json" + (", or has neither safetensors nor PyTorch weights" if weights else "")
    alternatives = [alternative(*_SAFETENSORS), alternative(*_TORCH)] if weights else [alternative()]
    return fetch_folder(name, KEY, alternatives, lacking)


# ---- the model -------------------------------------------------------------------------------------------


class TextTower(NamedTuple):
    """The part of a model that reads text: the whole of a text model, one of the two towers of CLIP and SigLIP."""

    folder: Path
    name: str  # for messages
    kind: Any  # a class of transformers
    config: Any  # its config

    @classmethod
    def find(cls, folder: Path, name: str) -> TextTower:
        """Read config.json. Raises InputError where it is missing, or of a model that has no text encoder."""
        from transformers import AutoConfig

        with quiet():
            try:
                described = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                candidates = [described.get_text_config(), described]
            except _UNREADABLE as error:
                raise InputError(f"{KEY}: the config of {name} cannot be read: {first_line(error)}") from None
            for config in candidates:
                kind = _text_class(config)
                if kind is not None:
                    if kind.__name__.endswith("EncoderModel"):
                        config.is_encoder_decoder = False  # of T5 and its like only the encoder is built
                    if hasattr(config, "use_cache"):
                        config.use_cache = False  # keys and values for the next word, which is never asked for
                    return cls(folder, name, kind, config)
        raise InputError(
            f"{KEY}: {name} is a model of the kind '{described.model_type}', which has no text encoder that could be "
            "read by itself; give one such as T5, CLIP, SigLIP, BERT, Qwen or Llama."
        )

    @property
    def dim(self) -> int:
        """The width of its last hidden states."""
        config = getattr(self.config, "encoder", self.config)  # T5Gemma has a config for each side
        return int(config.hidden_size)

    def build(self) -> Any:
        """The modules with random weights, or with none on the meta device."""
        with quiet():
            return self.kind(self.config, **self._options())

    def read(self, dtype: torch.dtype | None) -> Any:
        """The model with its weights, in eval mode; `dtype` None: as they are stored.

        Raises InputError that names tensors that are missing or of another shape, or the file that cannot be read.
        """
        with quiet():
            try:
                model, found = self.kind.from_pretrained(
                    self.folder,
                    config=self.config,
                    dtype=dtype or "auto",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                    local_files_only=True,
                    **self._options(),
                )
            except _UNREADABLE as error:
                raise InputError(f"{KEY}: the weights of {self.name} cannot be read: {first_line(error)}") from None
        problems = [f"'{key}' is missing" for key in sorted(found["missing_keys"]) if not is_unread(key)]
        problems += [
            f"'{key}' has shape {list(stored)}, expected {list(expected)}"
            for key, stored, expected in sorted(found["mismatched_keys"])
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise InputError(
                f"{KEY}: the weights of {self.name} do not fit {self.kind.__name__}, as its config.json has it: "
                f"{'; '.join(problems[:3])}{more}."
            )
        return model

    def _options(self) -> dict[str, Any]:
        has_choice = "add_pooling_layer" in inspect.signature(self.kind.__init__).parameters
        return {"add_pooling_layer": False} if has_choice else {}


def _text_class(config: Any) -> Any:
    """The class of transformers that turns ids into hidden states for a config; None where there is none."""
    import transformers
    from transformers import AutoModel, AutoModelForTextEncoding

    kind: Any = None
    if type(config) in AutoModelForTextEncoding._model_mapping:
        kind = AutoModelForTextEncoding._model_mapping[type(config)]
    elif getattr(config, "is_encoder_decoder", False):
        return None  # BART and its like: the last hidden states are the decoder's
    elif type(config) in AutoModel._model_mapping:
        kind = AutoModel._model_mapping[type(config)]
    else:  # towers that no mapping has are named for their configs, such as SigLIP's
        kind = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    return kind if kind is not None and kind.main_input_name == "input_ids" else None


def is_unread(parameter: str) -> bool:
    """Whether a tensor is of a part that does not take part in the last hidden states."""
    return parameter.split(".", 1)[0] in UNREAD


# ---- the tokenizer ---------------------------------------------------------------------------------------


def read_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer that a model's folder holds. Raises InputError where there is none, or it cannot be read."""
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            # Some classes make an empty tokenizer where there is no file; a few, such as ByT5's, need none.
            files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
            if not tokenizer.vocab_files_names:
                files.add("tokenizer_config.json")
            if any((folder / file).is_file() for file in files):
                return tokenizer
            why = f"the folder {folder} holds none of {', '.join(sorted(files))}"
        except _UNREADABLE as error:
            why = first_line(error)
    if any(folder.glob("*.model")) and importlib.util.find_spec("sentencepiece") is None:
        why = "it is a SentencePiece model; run `pip install sentencepiece`"
    raise InputError(f"{KEY}: the tokenizer of {name} cannot be read: {why}.")


# ---- around transformers ---------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and progress bars of transformers; what matters of them is an InputError here."""
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
