"""Atlas trains vision-language-action policies from robot demonstrations.

`atlas.train(config)` trains, `atlas.load_policy(reference)` loads a trained policy, and `atlas.register(group, name,
thing)` adds a policy type, an environment and so on. Each imports its implementation when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {"load_policy": "atlas.policies.base", "register": "atlas.system.plugins"}


def __getattr__(name: str) -> Any:
    # The module atlas/train.py is callable, so `atlas.train` is both the module and the function.
    if name == "train":
        return importlib.import_module("atlas.train")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'atlas' has no attribute '{name}'")
