"""Writing checkpoints in the background, while training goes on."""

from __future__ import annotations

import atexit
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from atlas.checkpoints.contents import Captured
from atlas.checkpoints.run_folder import Checkpoints

logger = logging.getLogger(__name__)

_SECONDS_AT_EXIT = 20.0  # how long a process that ends without `wait`, as after an error, waits for its write

_writing: set[threading.Thread] = set()


class BackgroundWriter:
    """Writes one checkpoint at a time on a separate thread.

    failed: what could not be written, one sentence each; training went on without it.
    """

    def __init__(self, checkpoints: Checkpoints, before: Callable[[], object] | None = None) -> None:
        """before: called on the writing thread before each write, for what must be on the disk earlier."""
        self.failed: list[str] = []
        self._checkpoints, self._before = checkpoints, before
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, contents: Captured, then: Callable[[Path], object] | None = None) -> None:
        """Begin to write a checkpoint, after the one before it; see `Checkpoints.write` and `prune`.

        contents: must not change until `wait` returns, see `Snapshot.copied`. then: called on the writing thread with
        the checkpoint's folder, once it is complete and linked. Raises what `wait` raises.
        """
        self.wait()
        # A daemon thread, as Python would wait without limit for any other kind at its end.
        self._thread = threading.Thread(target=self._run, args=(contents, then), name="atlas-checkpoint", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the write in progress, at most `seconds`; False if it is not done by then.

        Raises the error that it ended with, once, unless it is a disk error: those are in `failed`.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _run(self, contents: Captured, then: Callable[[Path], object] | None) -> None:
        _writing.add(threading.current_thread())
        try:
            if self._before is not None:
                self._before()
            path = self._write(contents)
            if path is not None and then is not None:
                then(path)
        except BaseException as error:  # raised where the thread's owner looks
            self._error = error
        finally:
            _writing.discard(threading.current_thread())

    def _write(self, contents: Captured) -> Path | None:
        step = contents.state.step
        try:
            path = self._checkpoints.write(contents)
        except OSError as error:
            self._fail(f"The checkpoint of step {step} could not be written: {error}. {self._room(contents)}")
            return None
        try:
            self._checkpoints.prune()
        except OSError as error:
            self._fail(f"Old checkpoints could not be removed after step {step}: {error}.")
        return path

    def _room(self, contents: Captured) -> str:
        root = self._checkpoints.root
        try:
            free = f"{_size(shutil.disk_usage(root).free)} are free in {root}"
        except OSError as error:
            free = f"{root} cannot be read ({error})"
        steps = self._checkpoints.steps()
        rest = f"the one of step {steps[-1]} is still there" if steps else "there is none yet"
        return f"It takes {_size(contents.nbytes)} and {free}; {rest}."

    def _fail(self, what: str) -> None:
        self.failed.append(what)
        logger.warning("%s Training goes on.", what)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


@atexit.register
def _finish_writing() -> None:
    """A process that ends without `wait` also finishes its write, but waits only for a limited time."""
    deadline = time.monotonic() + _SECONDS_AT_EXIT
    for thread in list(_writing):
        thread.join(max(0.0, deadline - time.monotonic()))
