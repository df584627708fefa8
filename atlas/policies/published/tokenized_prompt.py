"""The tokenizer of a published policy, which turns prompts into token ids. No other tokenizer ever replaces it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from atlas.errors import InputError, first_line
from atlas.policies.published.processor_files import TokenizerStep
from atlas.registry.references import HUB
from atlas.system.files import atomic_path
from atlas.system.hub import Alternative, fetch_folder
from atlas.system.paths import inside

TOKENIZER = "tokenizer"  # the folder beside a policy's other files
_PATTERNS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
_REMEMBERED = 4096  # prompts


def find_tokenizer(name: str, beside: Path, key: str) -> Path:
    """The folder of a tokenizer: a path, relative to `beside` if it is not absolute, or a model of the hub.

    name: from processor files or a setting; hf:owner/name always means the hub. In a policy's folder, `tokenizer` is
    Atlas's copy of a tokenizer fetched by name. Raises InputError, which begins with `key`.
    """
    if not name.startswith(HUB):
        local = Path(os.path.expanduser(name))
        if not local.is_absolute() and not name.startswith((".", "~")):
            local = inside(beside, name, where=f"{key}: ", follow_links=True)
        if local.is_dir():
            return _complete(local, key)
        if beside != Path() and (beside / TOKENIZER).is_dir():
            return _complete(beside / TOKENIZER, key)
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise InputError(
                f"{key}: there is no tokenizer at {local}; give a folder or the name of a model on the hub."
            )
    form = Alternative(_PATTERNS, lambda folder: any((folder / file).is_file() for file in _FILES))
    return fetch_folder(name.removeprefix(HUB), key, [form], "it has no tokenizer")


def _complete(folder: Path, key: str) -> Path:
    if not any((folder / file).is_file() for file in _FILES):
        raise InputError(f"{key}: the folder {folder} holds no tokenizer (it has none of {', '.join(_FILES)}).")
    return folder


class PromptTokenizer:
    """Texts to token ids as LeRobot does it: padded on the right, whatever the tokenizer's own side, and truncated."""

    def __init__(self, folder: Path, step: TokenizerStep, key: str) -> None:
        """Raises InputError where the folder's tokenizer cannot be read."""
        from transformers import AutoTokenizer

        self.folder, self.step, self._key = folder, step, key
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the library may raise anything
            raise InputError(f"{key}: the tokenizer in {folder} cannot be read: {first_line(error)}") from None
        if self._tokenizer.pad_token_id is None:
            raise InputError(f"{key}: the tokenizer in {folder} has no padding token.")
        # The folder may be a checkpoint's, which a long training deletes before it saves its last one.
        files = sorted(file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file())
        self._files = {file.name: file.read_bytes() for file in files}
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids int64 [B, L], and which of them are words, bool [B, L], on the CPU."""
        rows = [self._ids(text) for text in texts]
        longest = max((len(row) for row in rows), default=0)
        length = self.step.max_length if self.step.padding == "max_length" else longest
        ids = torch.full((len(rows), length), self._tokenizer.pad_token_id, dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids, torch.arange(length)[None] < torch.tensor([len(row) for row in rows])[:, None]

    def check_vocabulary(self, size: int) -> None:
        """Raise InputError where it has ids beyond a table of `size` words."""
        largest = max(self._tokenizer.get_vocab().values(), default=0)
        if largest >= size:
            raise InputError(
                f"{self._key}: the tokenizer in {self.folder} belongs to another model: it has the id {largest}, and "
                f"the weights have {size} ids."
            )

    def save(self, folder: Path) -> None:
        """Write its files, as they were when they were read."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            with atomic_path(folder / name) as partial:
                partial.write_bytes(content)

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            cut = {"truncation": True, "max_length": self.step.max_length} if self.step.truncation else {}
            self._known[text] = self._tokenizer(text, verbose=False, **cut)["input_ids"]
        return self._known[text]
