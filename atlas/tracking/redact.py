"""Keys stay out of every line and file this package writes."""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Mapping
from typing import Any

_SECRET_VARIABLE = re.compile(r"(API_KEY|TOKEN|SECRET|PASSWORD)$")
_WANDB_KEY = re.compile(r"\bwandb_v\d+_\w{16,}")
_URL_LOGIN = re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")
_SHORTEST_SECRET = 8  # shorter values ("1", "true") would blank out innocent text
_HIDDEN = "***"


def redact(text: str) -> str:
    """The text with `***` for keys: values of secret environment variables, wandb keys, logins within URLs."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name):
            text = text.replace(value, _HIDDEN)
    return _URL_LOGIN.sub(_HIDDEN, _WANDB_KEY.sub(_HIDDEN, text))


def cause(error: BaseException) -> str:
    """An error as the end of a sentence: its kind and the first line of its message, without keys."""
    lines = str(error).strip().splitlines()
    return redact(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def plain(value: Any) -> Any:
    """A copy of a nested config in mappings, lists, str, numbers, bool and None, without keys."""
    if isinstance(value, Mapping):
        return {redact(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):  # numpy's numbers too, which YAML cannot write as they are
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return redact(str(value))
