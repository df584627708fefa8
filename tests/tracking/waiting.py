"""How long a process has waited for something other than the machine: what a time limit means on a busy one."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil

_LOOK_SECONDS = 0.05
_lock = threading.Lock()
_seen: dict[str, int] = {}  # nanoseconds of every thread, including those that have ended
_looking: threading.Thread | None = None


class Waited:
    """Seconds since it was created in which no thread of this process ran, or was ready to run without a processor.

    What is left is waiting for an answer, a lock or a sleep. Time in which another thread held the interpreter's lock
    counts as the machine's.
    """

    def __init__(self) -> None:
        self._start, self._busy = time.monotonic(), _busy_seconds()

    @property
    def seconds(self) -> float:
        return max(0.0, time.monotonic() - self._start - (_busy_seconds() - self._busy))


def waited_since_start() -> float:
    """The same for the whole life of this process."""
    return max(0.0, time.time() - psutil.Process().create_time() - _busy_seconds())


def _busy_seconds() -> float:
    """The seconds in which any thread there was ran or was ready to run."""
    global _looking
    _look()
    if _looking is None:  # polls now and then, so that threads that end meanwhile are counted
        _looking = threading.Thread(target=_look_on, daemon=True)
        _looking.start()
    return sum(_seen.values()) / 1e9


def _look_on() -> None:
    while True:
        time.sleep(_LOOK_SECONDS)
        _look()


def _look() -> None:
    with _lock:
        for task in Path("/proc/self/task").iterdir():
            try:
                ran, ready, _ = (task / "schedstat").read_text().split()
            except (FileNotFoundError, ProcessLookupError):  # the thread has ended
                continue
            _seen[task.name] = max(_seen.get(task.name, 0), int(ran) + int(ready))
