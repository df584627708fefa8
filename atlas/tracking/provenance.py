"""The provenance of a run: the code's version, the packages, the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from atlas.system.process_control.cores import available_cores

_PACKAGES = ("atlas-vla", "torch", "accelerate", "transformers", "numpy", "tensorboard", "wandb", "mujoco", "robosuite")
_GIT_SECONDS = 5.0


def provenance() -> dict[str, Any]:
    """{"git": …, "packages": {name: version}, "python": …, "platform": …, "machine": …}, for the run's config."""
    return {
        "git": git_state(),
        "packages": {name: version for name in _PACKAGES if (version := installed_version(name)) is not None},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """{"processor": its name, "cores": the number that may be used, "memory_gib": in all, "gpus": their names}."""
    import psutil

    torch = sys.modules.get("torch")
    has_gpus = torch is not None and torch.cuda.is_available()
    return {
        "processor": _processor_name(),
        "cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch and has_gpus else [],
    }


def _processor_name() -> str:
    """The processor's name; Linux gives it only in a file."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Commit, branch and changes of the running code; None if it is not in a git repository.

    "diff" is a hash of the changes since the commit (null: none), which tells two runs with the same changes from two
    with different ones.
    """
    commit = _git("rev-parse", "HEAD")
    # A package installed somewhere inside another repository is not part of it.
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


def installed_version(package: str) -> str | None:
    """The version of a package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
