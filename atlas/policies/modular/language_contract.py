"""The language encoders by name: an instruction becomes tokens that vision and fusion can attend to."""

from __future__ import annotations

from pathlib import Path

from atlas.config import BytesLanguageConfig, HuggingFaceLanguageConfig
from atlas.policies.modular.bytes_language import BytesLanguageEncoder
from atlas.policies.modular.huggingface_language import HuggingFaceLanguageEncoder
from atlas.policies.modular.language_tokens import LanguageTokens

__all__ = ["LanguageTokens", "make_language"]


def make_language(
    config: BytesLanguageConfig | HuggingFaceLanguageConfig,
    source: str | Path | None = None,
    read_weights: bool = True,
) -> BytesLanguageEncoder | HuggingFaceLanguageEncoder:
    """The encoder that a config names: B instructions to LanguageTokens of `dim` numbers each.

    A pretrained one is read from `source`, where given, in place of `config.pretrained`; with read_weights false its
    modules are built and its weights are not read. Its attribute `frozen` says which weights it uses as they are, and
    is None for an encoder that is trained, or not read. Raises InputError where there is nothing to read.
    """
    if isinstance(config, BytesLanguageConfig):
        return BytesLanguageEncoder(config)
    return HuggingFaceLanguageEncoder(config, source, read_weights)
