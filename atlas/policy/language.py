"""Language encoders: an instruction becomes tokens that vision and fusion can attend to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from atlas.config import BytesLanguageConfig, HuggingFaceLanguageConfig
from atlas.errors import InputError


class LanguageTokens(NamedTuple):
    tokens: torch.Tensor  # [B, L, dim]
    is_pad: torch.Tensor  # bool [B, L], true where there is no token

    def summary(self) -> torch.Tensor:
        """Mean over the tokens that are there, [B, dim]."""
        present = (~self.is_pad).unsqueeze(-1).to(self.tokens.dtype)
        return (self.tokens * present).sum(1) / present.sum(1)


class BytesLanguageEncoder(nn.Module):
    """A small transformer over UTF-8 bytes (ByT5's tokenizer, which needs no file), trained from scratch."""

    def __init__(self, config: BytesLanguageConfig) -> None:
        super().__init__()
        from transformers import ByT5Tokenizer

        self.dim = config.dim
        self._max_length = config.max_length
        self._tokenizer = ByT5Tokenizer()
        self._cache: dict[str, torch.Tensor] = {}
        self.embedding = nn.Embedding(len(self._tokenizer), config.dim, padding_idx=self._tokenizer.pad_token_id)
        self.position = nn.Parameter(torch.randn(config.max_length, config.dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 4 * config.dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.dim), enable_nested_tensor=False)

    def forward(self, instructions: Sequence[str]) -> LanguageTokens:
        """Each distinct instruction is encoded once."""
        distinct = list(dict.fromkeys(instructions))
        ids = nn.utils.rnn.pad_sequence([self._ids(text) for text in distinct], batch_first=True)
        ids = ids.to(self.position.device)
        is_pad = ids == 0
        x = self.layers(self.embedding(ids) + self.position[: ids.shape[1]], src_key_padding_mask=is_pad)
        rows = torch.tensor([distinct.index(text) for text in instructions], device=x.device)
        return LanguageTokens(x[rows], is_pad[rows])

    def _ids(self, text: str) -> torch.Tensor:
        if text not in self._cache:
            ids = self._tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"]
            self._cache[text] = torch.tensor(ids)
        return self._cache[text]


class HuggingFaceLanguageEncoder(nn.Module):
    """A pretrained text encoder of the Hugging Face hub or of a local folder, frozen by default.

    Raises InputError when it is not there and cannot be downloaded; another model is never put in its place.
    """

    def __init__(self, config: HuggingFaceLanguageConfig) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

        try:
            described = AutoConfig.from_pretrained(config.pretrained)
            kind: Any = (
                AutoModelForTextEncoding if type(described) in AutoModelForTextEncoding._model_mapping else AutoModel
            )
            self._tokenizer = AutoTokenizer.from_pretrained(config.pretrained)
            self.model = kind.from_pretrained(config.pretrained)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model.language.pretrained: '{config.pretrained}' could not be loaded, neither as a folder nor from "
                f"the hub: {error}"
            ) from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        text = getattr(described, "text_config", described)
        self.dim = int(getattr(text, "hidden_size", None) or text.d_model)
        self._max_length = config.max_length
        self._frozen = config.freeze
        if config.freeze:
            self.model.requires_grad_(False)

    def train(self, mode: bool = True) -> HuggingFaceLanguageEncoder:
        """A frozen encoder stays in eval mode."""
        super().train(mode and not self._frozen)
        return self

    def forward(self, instructions: Sequence[str]) -> LanguageTokens:
        """Each distinct instruction is encoded once."""
        distinct = list(dict.fromkeys(instructions))
        encoded = self._tokenizer(
            distinct, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(self.model.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            x = self.model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).last_hidden_state
        rows = torch.tensor([distinct.index(text) for text in instructions], device=x.device)
        return LanguageTokens(x[rows], encoded.attention_mask[rows] == 0)


def make_language(
    config: BytesLanguageConfig | HuggingFaceLanguageConfig,
) -> BytesLanguageEncoder | HuggingFaceLanguageEncoder:
    """The encoder that a config names."""
    if isinstance(config, BytesLanguageConfig):
        return BytesLanguageEncoder(config)
    return HuggingFaceLanguageEncoder(config)
