"""Reading text models from the Hugging Face hub or folders: the text tower of any model, strictly."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import torch

from atlas.errors import InputError, first_line
from atlas.policies import huggingface_folder
from atlas.policies.huggingface_folder import UNREADABLE, quiet, read_description, read_weights
from atlas.policies.modular.parts import LANGUAGE_KEY as KEY

# Parts that some models have on top of the last hidden states, which are all that is read: a pooler, SigLIP's head.
# They are left out if the class allows it. If not, files may lack them and they are not trained.
UNREAD = ("pooler", "head")


def find_text_model(reference: str | Path, weights: bool) -> Path:
    """The folder of a text model; see `huggingface_folder.find_model`."""
    wanted = "config.json, weights and tokenizer"
    return huggingface_folder.find_model(reference, weights, KEY, wanted, "google-t5/t5-small")


class TextTower(NamedTuple):
    """The part of a model that reads text: the whole of a text model, or one of the two towers of CLIP and SigLIP."""

    folder: Path
    name: str  # for messages
    kind: Any  # a class of transformers
    config: Any  # its config

    @classmethod
    def find(cls, folder: Path, name: str) -> TextTower:
        """Read config.json. Raises InputError if it is missing, or the model has no text encoder."""
        described = read_description(folder, name, KEY)
        try:
            candidates = [described.get_text_config(), described]
        except UNREADABLE as error:
            raise InputError(f"{KEY}: the config of {name} cannot be read: {first_line(error)}") from None
        for config in candidates:
            kind = _text_class(config)
            if kind is not None:
                if kind.__name__.endswith("EncoderModel"):
                    config.is_encoder_decoder = False  # for T5 and the like, only the encoder is built
                if hasattr(config, "use_cache"):
                    config.use_cache = False  # keys and values for the next word, which is never needed
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

        Raises InputError that names tensors that are missing or have another shape, or the file that cannot be read.
        """
        return read_weights(
            self.kind, self.config, self.folder, self.name, KEY, dtype=dtype, may_lack=is_unread, **self._options()
        )

    def _options(self) -> dict[str, Any]:
        has_choice = "add_pooling_layer" in inspect.signature(self.kind.__init__).parameters
        return {"add_pooling_layer": False} if has_choice else {}


def _text_class(config: Any) -> Any:
    """The class in transformers that turns ids into hidden states for a config; None if there is none."""
    import transformers
    from transformers import AutoModel, AutoModelForTextEncoding

    kind: Any = None
    if type(config) in AutoModelForTextEncoding._model_mapping:
        kind = AutoModelForTextEncoding._model_mapping[type(config)]
    elif getattr(config, "is_encoder_decoder", False):
        return None  # BART and the like: the last hidden states are the decoder's
    elif type(config) in AutoModel._model_mapping:
        kind = AutoModel._model_mapping[type(config)]
    else:  # towers that are in no mapping are named after their configs, such as SigLIP's
        kind = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    return kind if kind is not None and kind.main_input_name == "input_ids" else None


def is_unread(parameter: str) -> bool:
    """Whether a tensor belongs to a part that does not contribute to the last hidden states."""
    return parameter.split(".", 1)[0] in UNREAD
