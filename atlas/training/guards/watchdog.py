"""Ends a rank in which nothing has happened for too long, after showing where each of its threads is."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from atlas.launch import launcher_folder
from atlas.launch.reports import HANG, Report, now, own_frames, write_code
from atlas.system.files import write_text

_LOOK_SECONDS = 1.0
_LATE_SECONDS = 5.0  # a check may be late by this; beyond it the process itself was stopped, which is not a hang
_SAY_SECONDS = 5.0  # for a file or a pipe to take the stacks, since it may be what hangs


class Heartbeat:
    """Counts what was done, and remembers the last of it, in a few words."""

    def __init__(self) -> None:
        self.count, self.what = 0, "the start"

    def beat(self, what: str) -> None:
        """Note that something was done. Costs less than a microsecond."""
        self.what = what
        self.count += 1


class Watchdog:
    """While its `with` block lasts, ends the process with exit code 1 if nothing happens for `timeout_seconds`.

    First, the stack of every thread goes to stderr and to `hang_rank_<rank>.txt` in the run's folder. If one rank of a
    launcher finds this, the others show theirs and end as well, whatever time they have left. Time during which the
    process was stopped (SIGSTOP) does not count.
    """

    def __init__(self, heartbeat: Heartbeat, timeout_seconds: float, rank: int, run_dir: Path) -> None:
        self._heartbeat, self._timeout, self._rank = heartbeat, timeout_seconds, rank
        self._file = run_dir / f"hang_rank_{rank}.txt"
        self._marker = folder / HANG if (folder := launcher_folder()) is not None else None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="atlas-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    # ---- the thread --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        look = min(_LOOK_SECONDS, self._timeout / 10)
        late = min(_LATE_SECONDS, self._timeout / 4)
        beats, quiet, last = self._heartbeat.count, 0.0, time.monotonic()
        while not self._over.wait(look):
            at = time.monotonic()
            quiet += min(at - last, look + late)
            last = at
            if beats != self._heartbeat.count:
                beats, quiet = self._heartbeat.count, 0.0
            if quiet >= self._timeout:
                self._end(f"nothing has happened for {_span(self._timeout)} (distributed.timeout_minutes)")
            elif self._marker is not None and self._marker.exists():
                self._end(f"another rank has hung; here nothing has happened for {_span(quiet)}")

    def _end(self, why: str) -> None:
        """Nothing here may wait for what hangs: no logging, no stream locks, and files only for some seconds."""
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"{when} Rank {self._rank}: {why} after {self._heartbeat.what}. Its threads:\n\n{self._stacks()}"
        if self._marker is not None:
            summary = (
                f"Training has hung: {_span(self._timeout)} without a step (distributed.timeout_minutes). Where each "
                f"rank was is shown above and in {self._file.parent}/hang_rank_*.txt."
            )
            self._marker.touch()
            Report(self._rank, "hang", why, summary, False, now()).write(self._marker.parent)
            write_code(self._marker.parent, self._rank, 1)
        _for_a_while(lambda: self._show(text))
        _for_a_while(lambda: write_text(self._file, text))
        os._exit(1)

    def _stacks(self) -> str:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = []
        for number, frame in sys._current_frames().items():
            if number != threading.get_ident():
                name = names.get(number, "of a library")
                lines = traceback.format_list(own_frames(traceback.extract_stack(frame)))
                parts.append(f"Thread {name}:\n{''.join(lines)}")
        parts.sort(key=lambda part: not part.startswith("Thread MainThread"))
        return "\n".join(parts)

    def _show(self, text: str) -> None:
        """One rank at a time, as they may share a terminal."""
        if self._marker is None:
            _write_stderr(text)
            return
        with self._marker.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _write_stderr(text)


def _write_stderr(text: str) -> None:
    rest = text.encode()
    while rest:
        rest = rest[os.write(2, rest) :]


def _for_a_while(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_SAY_SECONDS)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.3g} minutes" if seconds >= 60 else f"{seconds:.3g} seconds"
