"""How tests end the processes that they have started: all of them, and in limited time."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

import psutil

from tests import warm

_SECONDS = 30.0


def end_tree(process: subprocess.Popen[Any] | warm.Process) -> tuple[Any, Any]:
    """Kill a process and everything it has started; returns the rest of its output.

    Raises subprocess.TimeoutExpired if one that has lost its parent holds a pipe open.
    """
    tree: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        tree = [parent, *parent.children(recursive=True)]
    for each in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    return process.communicate(timeout=_SECONDS)
