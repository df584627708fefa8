"""Atlas trains vision-language-action policies from robot demonstrations.

`atlas.train(config)` trains; the work behind it is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The module atlas/train.py is callable, so that `atlas.train` is both the module and the function.
    if name == "train":
        return importlib.import_module("atlas.train")
    raise AttributeError(f"module 'atlas' has no attribute '{name}'")
