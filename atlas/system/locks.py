"""Folders that one process at a time works in: the others wait, or are told who is working there.

A folder's lock is a file in it that the process locks and writes its number and host into. The system releases the
lock when the process ends, however it ends, so no stale lock remains. It works between machines if their shared file
system supports such locks; if it does not, one warning says so and nothing is locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atlas.errors import InputError

logger = logging.getLogger(__name__)

LOCK = ".lock"  # the file in a folder
_LOOK_SECONDS = 0.2
_TRY_SECONDS = 0.6  # within this, a process that only looks is done, and one that has just begun has written its name
_ABANDONED_SECONDS = 24 * 3600  # without a change, on file systems without locks

_held: set[int] = set()  # descriptors of this process's locks
_unlocked: set[str] = set()  # file systems without locks that have been warned about


class _Busy(Exception):
    """Another process has the lock."""


@contextmanager
def hold(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Keep every other process out of this folder during the block. The folder is created if it does not exist.

    what: what the folder is, for people, such as "the run outputs/first". wait: wait for the process that holds it, and
    say so; otherwise InputError names that process.
    """
    descriptor = _acquire(folder, what, wait)
    owner = os.getpid()
    try:
        yield
    finally:
        if descriptor is not None and owner == os.getpid():  # a forked copy of this process does not own it
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            _held.discard(descriptor)
            os.close(descriptor)


def check_free(folder: Path, what: str) -> None:
    """Raises InputError, as `hold` does, if another process holds the folder. Touches nothing."""
    deadline = time.monotonic() + _TRY_SECONDS
    while _is_held(folder / LOCK):
        if time.monotonic() > deadline:
            raise InputError(_refusal(folder, what))
        time.sleep(_LOOK_SECONDS)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """During the block, `is_abandoned` is false for this folder, which must exist."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # no locks here: `is_abandoned` goes by age
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held.add(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def is_abandoned(folder: Path) -> bool:
    """Whether the process that was `writing` a folder is gone; without locks, whether the folder is a day old."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False  # it has been renamed meanwhile, or is another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if _means_busy(error):
            return False
        with contextlib.suppress(OSError):
            return time.time() - os.fstat(descriptor).st_mtime > _ABANDONED_SECONDS
        return False
    finally:
        os.close(descriptor)


# ---- one lock --------------------------------------------------------------------------------------------


def _acquire(folder: Path, what: str, wait: bool) -> int | None:
    """The descriptor of the lock; None if the file system has no locks. Raises InputError."""
    deadline, said = time.monotonic() + _TRY_SECONDS, False
    while True:
        try:
            descriptor = _try(folder)
            break
        except _Busy:
            if time.monotonic() > deadline:
                if not wait:
                    raise InputError(_refusal(folder, what)) from None
                if not said:
                    # On stderr like a progress bar: a run has no log yet.
                    print(f"Waiting for {_holder(folder)}, which is working on {what}.", file=sys.stderr, flush=True)
                    said = True
            time.sleep(_LOOK_SECONDS)
    if descriptor is not None:
        _held.add(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    return descriptor


def _try(folder: Path) -> int | None:
    """Raises _Busy; OSError if no file can be created there."""
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # its last owner has removed the folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if _means_busy(error):
                raise _Busy from None
            _say_unlocked(folder, error)
            return None
        if _is_same(descriptor, path):
            return descriptor
        os.close(descriptor)  # its owner removed the file after it was opened here


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _means_busy(error)
    finally:
        os.close(descriptor)
    return False


def _means_busy(error: OSError) -> bool:
    return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def _refusal(folder: Path, what: str) -> str:
    return (
        f"{_holder(folder).capitalize()} is working on {what} ({folder.absolute()}). Wait until it has ended, stop it, "
        "or choose another folder."
    )


def _holder(folder: Path) -> str:
    try:
        values = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return f"process {int(values['pid'])} on {values['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _say_unlocked(folder: Path, error: OSError) -> None:
    where = str(folder.absolute().parent)
    if where not in _unlocked:
        _unlocked.add(where)
        logger.warning(
            "The file system of %s has no locks (%s): nothing keeps two processes from working in the same folder.",
            where,
            error.strerror,
        )


def _forget() -> None:
    """A forked process must not keep its parent's locks after the parent has ended; data workers live a bit longer."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
