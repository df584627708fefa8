"""Folders that one process at a time works in: the others wait, or are told who does.

A folder's lock is a file in it that its process has locked and written its number and host into. The system lets go of
it when the process ends, however it ends, so none is ever left behind. It works between machines where their common
file system has such locks; where it has none, that is said once, and nothing is locked.
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
_TRY_SECONDS = 0.6  # in which one who only looks has looked, and one who has just begun has written who it is
_ABANDONED_SECONDS = 24 * 3600  # without a change; where the file system has no locks

_held: set[int] = set()  # descriptors of this process's locks
_unlocked: set[str] = set()  # the file systems that have no locks, of which this was said


class _Busy(Exception):
    """Another process has the lock."""


@contextmanager
def hold(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Within the block no other process holds this folder, which is made if it is not there.

    what: what the folder is, for people, such as "the run outputs/first". wait: for the process that holds it, and say
    so; otherwise InputError names it.
    """
    descriptor = _acquire(folder, what, wait)
    owner = os.getpid()
    try:
        yield
    finally:
        if descriptor is not None and owner == os.getpid():  # a forked copy of this process has none
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            _held.discard(descriptor)
            os.close(descriptor)


def check_free(folder: Path, what: str) -> None:
    """Raises InputError, as `hold` does, where another process holds the folder. Touches nothing."""
    deadline = time.monotonic() + _TRY_SECONDS
    while _is_held(folder / LOCK):
        if time.monotonic() > deadline:
            raise InputError(_refusal(folder, what))
        time.sleep(_LOOK_SECONDS)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within the block `is_abandoned` says no of this folder, which is there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # no locks here: `is_abandoned` goes by time
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held.add(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def is_abandoned(folder: Path) -> bool:
    """Whether the process that was `writing` a folder is gone; where there are no locks, whether it is a day old."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False  # it has got its name meanwhile, or is another user's
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
    """The descriptor of the lock; None where the file system has none. Raises InputError."""
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
                    # As a progress bar does: this is before a run has a log.
                    print(f"Waiting for {_holder(folder)}, which works on {what}.", file=sys.stderr, flush=True)
                    said = True
            time.sleep(_LOOK_SECONDS)
    if descriptor is not None:
        _held.add(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    return descriptor


def _try(folder: Path) -> int | None:
    """Raises _Busy; OSError where no file can be made there."""
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # whoever had it removed the folder
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
        os.close(descriptor)  # of a file that its owner has removed since it was opened here


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
        f"{_holder(folder).capitalize()} works on {what} ({folder.absolute()}). Wait until it has ended, end it, or "
        "choose another folder."
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
    """A forked process must not keep its parent's locks when that has ended: data workers live a little longer."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
