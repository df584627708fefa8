"""The default language encoder: small, trained from scratch, without any file to download."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from atlas.policies.modular.language_encoders.language_contract import LanguageEncoder
from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens, distinct, pad_and_send
from atlas.policies.modular.parts import BytesLanguageConfig

if TYPE_CHECKING:
    from transformers import ByT5Tokenizer

logger = logging.getLogger(__name__)


@functools.cache
def _tokenizer() -> ByT5Tokenizer:
    """The same for all; making one takes as long as the rest of a small policy."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


class BytesLanguageEncoder(LanguageEncoder):
    """A small transformer over UTF-8 bytes (ByT5's tokenizer, which needs no file), trained from scratch.

    An instruction ends with an end token, which is all that an empty one has. One longer than `max_length` is cut off,
    with a warning.
    """

    def __init__(self, config: BytesLanguageConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self._max_length = config.max_length
        self._tokenizer = _tokenizer()
        self._cache: dict[str, torch.Tensor] = {}
        self.embedding = nn.Embedding(len(self._tokenizer), config.dim, padding_idx=self._tokenizer.pad_token_id)
        self.position = nn.Parameter(torch.randn(config.max_length, config.dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 4 * config.dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.dim), enable_nested_tensor=False)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers.layers)

    def forward(self, instructions: Sequence[str]) -> LanguageTokens:
        """B instructions to tokens [B, L, dim]; each distinct instruction is encoded once."""
        texts, rows = distinct(instructions)
        words = [self._ids(text) for text in texts]
        ids, is_pad, places = pad_and_send(words, rows, self._tokenizer.pad_token_id, self.position.device)
        x = self.layers(self.embedding(ids) + self.position[: ids.shape[1]], src_key_padding_mask=is_pad)
        return LanguageTokens(x[places], is_pad[places])

    def _ids(self, text: str) -> torch.Tensor:
        if text not in self._cache:
            ids = self._tokenizer(text)["input_ids"]
            if len(ids) > self._max_length:
                logger.warning(
                    "An instruction has %d bytes and an end token, more than model.language.max_length (%d), "
                    "and is cut there: '%s'",
                    len(ids) - 1,
                    self._max_length,
                    text,
                )
                ids = self._tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"]
            self._cache[text] = torch.tensor(ids)
        return self._cache[text]
