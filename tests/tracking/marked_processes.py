"""Finding and ending every process of a run, including wandb's own, by a variable in their environment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

MARK = "ATLAS_RUN_MARK"
CORE = "wandb-core"
_GRACE_SECONDS = 8.0


def new_mark() -> dict[str, str]:
    """What to put into the environment of a run: its processes inherit it, those in sessions of their own too."""
    return {MARK: uuid.uuid4().hex}


def processes_of(mark: dict[str, str]) -> dict[int, str]:
    """{process id: name} of the living processes that were started with this mark."""
    wanted = f"{MARK}={mark[MARK]}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
                if rest.split()[0] != "Z":
                    found[int(folder.name)] = name
        except OSError:  # it has ended meanwhile, or is somebody else's
            continue
    return found


def left_over(mark: dict[str, str]) -> dict[int, str]:
    """What is still alive some seconds after a run; wandb's system monitor looks for its parent now and then."""
    end = time.monotonic() + _GRACE_SECONDS
    while (left := processes_of(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def core_of(mark: dict[str, str]) -> int | None:
    """The process id of the run's wandb-core, once it has started."""
    return next((process for process, name in processes_of(mark).items() if name == CORE), None)


def end_all(mark: dict[str, str]) -> None:
    """Kill what is left of a run; a stopped process as well."""
    while left := processes_of(mark):
        for process in left:
            kill(process, signal.SIGKILL)
        time.sleep(0.02)


def kill(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(process, number)


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(0.02)
