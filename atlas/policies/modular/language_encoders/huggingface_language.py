"""A pretrained text model as language encoder; a frozen one reads each instruction once and remembers it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from atlas.errors import InputError
from atlas.policies.huggingface_folder import quiet, read_tokenizer, repeated_blocks
from atlas.policies.modular.language_encoders.huggingface_text import TextTower, find_text_model, is_unread
from atlas.policies.modular.language_encoders.language_contract import LanguageEncoder
from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens, Remembered, distinct, pad_and_send
from atlas.policies.modular.parts import LANGUAGE_KEY as KEY
from atlas.policies.modular.parts import HuggingFaceLanguageConfig
from atlas.policies.pretrained_weights import FrozenWeights, weights_hash, without_autocast
from atlas.system.documents import parse_json
from atlas.system.files import atomic_path, partial_folder

logger = logging.getLogger(__name__)


class HuggingFaceLanguageEncoder(LanguageEncoder):
    """The last hidden states of a text model from the Hugging Face hub, or from a folder; frozen by default.

    A frozen encoder keeps its weights in their stored type, encodes each distinct instruction once and alone, outside
    autocast, and remembers the result; so an embedding depends neither on the rest of the batch nor on the precision of
    training. Remembered embeddings can be written to a file and read by other processes and later runs. A trained
    encoder has float32 weights and encodes the distinct instructions of a batch together.

    Padding is never attended to. An instruction longer than `config.max_length` tokens, or than the model has positions
    for, is cut off, with a warning. One without any token (an empty one, if the tokenizer adds no special tokens) is
    read as the end-of-text token alone.

    Raises InputError if the model does not exist and cannot be downloaded, or lacks weights or a tokenizer; it is never
    replaced by another model or random weights.
    """

    def __init__(
        self, config: HuggingFaceLanguageConfig, source: str | Path | None = None, read_weights: bool = True
    ) -> None:
        super().__init__()
        self._config = config
        self._name = f"'{config.pretrained}'" + (f" (read from {source})" if source is not None else "")
        self._folder = find_text_model(config.pretrained if source is None else source, read_weights)
        tower = TextTower.find(self._folder, self._name)
        self._tokenizer = read_tokenizer(self._folder, self._name, KEY) if read_weights else None
        if read_weights:
            self.model = tower.read(dtype=None if config.freeze else torch.float32)
        else:
            self.model = tower.build()
        self.dim = tower.dim
        self._max_length = min(config.max_length, _positions(self.model))
        self._ids: dict[str, torch.Tensor] = {}
        # For a frozen model: [L, dim] for each instruction, in the model's own type, on the CPU; and on its device.
        self._memory: dict[str, torch.Tensor] = {}
        self._placed: Remembered | None = None
        self.frozen: FrozenWeights | None = None
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not config.freeze and not is_unread(name))
        if config.freeze:
            self.eval()
            if read_weights:
                self.frozen = FrozenWeights(config.pretrained, weights_hash(self._read_tensors()))
        self.register_state_dict_post_hook(_leave_out_tied)
        self.register_load_state_dict_pre_hook(_put_in_tied)

    def train(self, mode: bool = True) -> HuggingFaceLanguageEncoder:
        """A frozen encoder stays in eval mode."""
        super().train(mode and not self._config.freeze)
        return self

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return repeated_blocks(self.model)

    def forward(self, instructions: Sequence[str]) -> LanguageTokens:
        """B instructions to tokens float32 [B, L, dim]; each distinct instruction is encoded once."""
        texts, rows = distinct(instructions)
        if self._config.freeze:
            self.embed(texts)
            self._placed = self._placed or Remembered(self._memory, self.model.device)
            tokens, is_pad = self._placed.of(instructions)
            return LanguageTokens(tokens.float(), is_pad)
        words = [self._token_ids(text) for text in texts]
        ids, is_pad, places = pad_and_send(words, rows, self._pad_id(), self.model.device)
        uneven = len({len(word) for word in words}) > 1
        tokens = self._hidden(ids, is_pad if uneven else None)
        return LanguageTokens(tokens[places].float(), is_pad[places])

    # ---- what a frozen encoder remembers -----------------------------------------------------------------

    def embed(self, instructions: Iterable[str]) -> None:
        """Encode the instructions that are not remembered yet, and remember them."""
        self.remember(self.encode(self.unknown(instructions)))

    def unknown(self, instructions: Iterable[str]) -> list[str]:
        """The distinct instructions that are not remembered yet."""
        return [text for text in dict.fromkeys(instructions) if text not in self._memory]

    def encode(self, instructions: Iterable[str]) -> dict[str, torch.Tensor]:
        """A frozen model's output for each instruction alone: [L, dim] in its own type, on the CPU."""
        return {text: self._encode(text) for text in instructions}

    def remember(self, tokens: Mapping[str, torch.Tensor]) -> None:
        """Store what `encode` has returned, here or in another process, instead of computing it."""
        if tokens:
            self._memory |= tokens
            self._placed = None

    def _encode(self, text: str) -> torch.Tensor:
        ids, device = self._token_ids(text), self.model.device
        if device.type == "meta":  # used for counting arithmetic; what is done once costs nothing per sample
            return torch.empty(len(ids), self.dim)
        assert self.frozen is not None, "only a frozen encoder whose weights were read remembers"
        with torch.no_grad(), without_autocast(device):
            return self._hidden(ids.unsqueeze(0).to(device), None)[0].cpu()

    def save_embeddings(self, path: Path) -> None:
        """Write what is remembered to a safetensors file, atomically, with what `load_embeddings` checks."""
        assert self.frozen is not None
        metadata = {
            "reference": self.frozen.reference,
            "sha256": self.frozen.sha256,
            "max_length": str(self._config.max_length),
            "instructions": json.dumps(list(self._memory)),
        }
        tensors = {str(number): kept.contiguous() for number, kept in enumerate(self._memory.values())}
        with atomic_path(path) as partial:
            save_file(tensors, partial, metadata)

    def load_embeddings(self, path: Path) -> int:
        """Load what `save_embeddings` wrote, instead of computing it; returns the number of instructions.

        Raises InputError for a file made with other weights or another `max_length`, or that cannot be read.
        """
        assert self.frozen is not None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                texts = parse_json(metadata["instructions"])
                kept = [file.get_tensor(str(number)) for number in range(len(texts))]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as embeddings of instructions ({error}). Delete it to compute them again."
            ) from None
        self._check_origin(path, metadata)
        self.remember(dict(zip(texts, kept, strict=True)))
        return len(texts)

    def _check_origin(self, path: Path, metadata: dict[str, str]) -> None:
        assert self.frozen is not None
        if metadata.get("sha256") != self.frozen.sha256:
            theirs = f"'{metadata.get('reference')}' (sha256 {metadata.get('sha256', '')[:12]})"
            raise InputError(
                f"{path} holds embeddings of {theirs}, but {KEY} is {self._name} with other weights (sha256 "
                f"{self.frozen.sha256[:12]}). If this is intended, delete the file, and they are computed again."
            )
        if metadata.get("max_length") != str(self._config.max_length):
            raise InputError(
                f"{path} holds embeddings of instructions cut at {metadata.get('max_length')} tokens, but "
                f"model.language.max_length is {self._config.max_length}. Set it back or, if the change is intended, "
                "delete the file, and they are computed again."
            )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> HuggingFaceLanguageEncoder:
        """Moves what is remembered along with the model."""
        super()._apply(fn, recurse)
        self._placed = None
        return self

    # ---- the model itself --------------------------------------------------------------------------------

    def save_source(self, folder: Path) -> None:
        """Write model and tokenizer as a Hugging Face folder, which `HuggingFaceLanguageConfig.build(folder)` reads.

        An earlier folder of that name is replaced once the new one is complete.
        """
        with partial_folder(folder) as partial:
            with quiet():
                self.model.save_pretrained(partial)
                self._read_tokenizer().save_pretrained(partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)

    def _hidden(self, ids: torch.Tensor, is_pad: torch.Tensor | None) -> torch.Tensor:
        """ids int64 [N, L] and is_pad bool [N, L] (None: no padding) to hidden states [N, L, dim]."""
        device = self.model.device
        there = None if is_pad is None else (~is_pad).long()  # int64 [N, L]
        if device.type == "meta":  # transformers reads the mask's values unless it is given for each pair of tokens
            there = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1], device=device)
        hidden: torch.Tensor = self.model(input_ids=ids, attention_mask=there).last_hidden_state
        if hidden.shape[-1] != self.dim:
            raise InputError(
                f"{KEY}: {self._name} gives {hidden.shape[-1]} numbers per token, but its config.json says "
                f"{self.dim}; a {type(self.model).__name__} of this form is not supported."
            )
        return hidden

    def _token_ids(self, text: str) -> torch.Tensor:
        """int64 [L] on the CPU, L at least 1 and at most the longest that the model reads."""
        if text not in self._ids:
            tokenizer = self._read_tokenizer()
            ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
            if len(ids) > self._max_length:
                logger.warning(
                    "An instruction has %d tokens, but %s reads at most %d (model.language.max_length, or the "
                    "positions it has), and it is cut there: '%s'",
                    len(ids),
                    self._name,
                    self._max_length,
                    text,
                )
                ids = tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"]
            if not ids:
                ids = [self._pad_id() if tokenizer.eos_token_id is None else tokenizer.eos_token_id]
            if text.strip() and not set(ids) - set(tokenizer.all_special_ids):
                logger.warning(
                    "The tokenizer of %s knows no word of an instruction, which therefore says nothing to the policy: "
                    "'%s'",
                    self._name,
                    text,
                )
            known = self.model.get_input_embeddings().num_embeddings
            if max(ids) >= known:
                raise InputError(
                    f"{KEY}: the tokenizer of {self._name} is of another model: it gives the token {max(ids)} for "
                    f"'{text}', but the model knows {known}."
                )
            self._ids[text] = torch.tensor(ids)
        return self._ids[text]

    def _pad_id(self) -> int:
        """The token that fills up a row of ids; it is not attended to, so any token will do."""
        tokenizer = self._read_tokenizer()
        return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)

    def _read_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = read_tokenizer(self._folder, self._name, KEY)
        return self._tokenizer

    def _read_tensors(self) -> list[tuple[str, torch.Tensor]]:
        """The weights that the embeddings depend on: everything except unread parts, with tied tensors once."""
        tied = _tied(self.model)
        return [(k, v) for k, v in self.model.state_dict().items() if k not in tied and not is_unread(k)]


def _positions(model: nn.Module) -> int:
    """The longest input that a model has positions for."""
    longest = getattr(model.config, "max_position_embeddings", None) or 2**31
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions starting after the padding token's id.
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            longest = min(longest, module.num_embeddings - offset)
    return int(longest)


def _tied(model: nn.Module) -> dict[str, str]:
    """Further names under which a model holds the same parameter, and the first name of each."""
    first: dict[int, str] = {}
    names = [(name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False)]
    return {name: earlier for name, earlier in names if name != earlier}


def _leave_out_tied(encoder: nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: object) -> None:
    """A tied tensor, such as T5's embedding, is saved once: safetensors refuses tensors that share memory."""
    for name in _tied(encoder.get_submodule("model")):
        state.pop(f"{prefix}model.{name}", None)


def _put_in_tied(encoder: nn.Module, state: dict[str, torch.Tensor], prefix: str, *rest: object) -> None:
    for name, first in _tied(encoder.get_submodule("model")).items():
        if f"{prefix}model.{first}" in state:
            state.setdefault(f"{prefix}model.{name}", state[f"{prefix}model.{first}"])
