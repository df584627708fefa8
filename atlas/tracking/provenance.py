"""Where a run comes from: the code's version, the packages, the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("atlas-vla", "torch", "accelerate", "transformers", "numpy", "tensorboard", "wandb", "mujoco", "robosuite")
_GIT_SECONDS = 5.0


def provenance() -> dict[str, Any]:
    """{"git": …, "packages": {name: version}, "python": …, "platform": …}, for the run's config."""
    return {
        "git": git_state(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Commit, branch and changes of the code that runs; None where it is not from a git repository.

    "diff" is a hash of what differs from the commit (null: nothing does), so that two runs of the same changes can be
    told from two of different ones.
    """
    commit = _git("rev-parse", "HEAD")
    # A package that is installed somewhere within another repository is not a part of it.
    if commit is None or _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    diff = _git("diff", "HEAD", "--", ".") or ""
    return {
        "commit": commit,
        "branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(diff),
        "diff": hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else None,
    }


def _git(*arguments: str) -> str | None:
    package = Path(__file__).parents[1]
    command = ["git", "-C", str(package), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_GIT_SECONDS, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
