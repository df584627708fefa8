"""Locks on folders: they name their holder, and end with its process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atlas.errors import InputError
from atlas.system.files import atomic_path, partial_folder
from atlas.system.locks import check_free, hold, is_abandoned, writing


@contextmanager
def holder(folder: Path) -> Iterator[int]:
    """Another process that holds the folder's lock, and whose own child outlives it; returns its number."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with hold(folder, "it"):
                os.write(told, str(worker()).encode())
                time.sleep(60)
        finally:
            os._exit(0)
    os.close(told)
    grandchild = int(os.read(ready, 20))
    os.close(ready)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert os.kill(grandchild, 0) is None  # it is still there when the lock is looked at
        orphans.append(grandchild)


orphans: list[int] = []


def worker() -> int:
    """A forked process, as data workers are."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return child


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    yield
    while orphans:
        os.kill(orphans.pop(), signal.SIGKILL)


def test_the_second_is_told_who_the_first_is_until_that_has_died(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holder(folder) as first:
        for refused in (lambda: hold(folder, "the run").__enter__(), lambda: check_free(folder, "the run")):
            with pytest.raises(InputError, match=rf"Process {first} on {socket.gethostname()} is working on the run"):
                refused()

    check_free(folder, "the run")
    with hold(folder, "the run"):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    assert not list(folder.iterdir())


def test_who_waits_goes_on_when_the_first_has_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = threading.Event()

    def second() -> None:
        with hold(tmp_path, "the recording", wait=True):
            got.set()

    waiting = threading.Thread(target=second, daemon=True)
    with holder(tmp_path) as first:
        waiting.start()
        deadline = time.monotonic() + 30
        while "Waiting" not in (said := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert f"Waiting for process {first} on" in said and "the recording" in said and not got.is_set()
    assert got.wait(30)
    waiting.join()


def test_a_file_system_without_locks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with hold(tmp_path / "run", "the run"), hold(tmp_path / "run", "the run"):
            check_free(tmp_path / "run", "the run")

    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "has no locks" in record.getMessage()


def test_what_a_living_process_writes_is_not_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with partial_folder(tmp_path / "step") as folder:
        with writing(folder):
            assert not is_abandoned(folder)
        assert is_abandoned(folder)  # as the system has it when the process is gone

        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "none")))
        assert not is_abandoned(folder)  # nobody knows
        os.utime(folder, (0, 0))
        assert is_abandoned(folder)
    assert not is_abandoned(folder)


def test_two_writers_of_a_file_never_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like two containers that share a disk, with the same process number."""
    with atomic_path(tmp_path / "file") as first:
        first.write_text("first")
        with atomic_path(tmp_path / "file") as second:
            second.write_text("second")
        assert (tmp_path / "file").read_text() == "second" and first.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "first"

    monkeypatch.setattr(secrets, "token_hex", lambda _: "00")
    for kind in (atomic_path, partial_folder):
        with kind(tmp_path / "same"), pytest.raises(FileExistsError), kind(tmp_path / "same"):
            pass
