"""Where Atlas keeps what it has downloaded or computed, and could download or compute again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """$ATLAS_CACHE_DIR, otherwise `atlas` in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("ATLAS_CACHE_DIR"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "atlas"
