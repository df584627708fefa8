"""What is tried out in another process cannot hang, crash or speak secrets."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from atlas.doctor.child import Trial, try_module


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs some lines as the main part of a module."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def run(lines: str, seconds: float = 60) -> Trial:
        (tmp_path / "attempted.py").write_text("import sys\nfrom atlas.doctor.child import answer\n" + lines)
        return try_module("attempted", ["word"], seconds)

    return run


def test_what_it_finds_comes_back_however_much_is_printed(attempt) -> None:  # type: ignore[no-untyped-def]
    tried = attempt("print('noise' * 10**6); answer(sys.argv[1], lambda: {'given': sys.argv[2]})")

    assert tried.worked and tried.answer == {"given": "word"}


def test_an_error_comes_back_in_its_own_words_without_keys(attempt, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")

    tried = attempt(
        "import atexit; atexit.register(lambda: print('the last line', file=sys.stderr))\n"
        "def work(): raise ValueError('refused: 0123456789abcdef.\\nmore')\n"
        "answer(sys.argv[1], work)"
    )

    assert not tried.worked and tried.code == 1 and tried.why == "ValueError: refused: ***"


def test_a_crash_says_its_signal_and_the_last_words(attempt) -> None:  # type: ignore[no-untyped-def]
    tried = attempt(
        "import os, signal\n"
        "print('libEGL: no device\\nUserWarning: old\\n=====', file=sys.stderr, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGABRT)"
    )

    assert tried.why == "it was killed by SIGABRT; its last words: libEGL: no device"


def test_silence_is_told_from_success(attempt) -> None:  # type: ignore[no-untyped-def]
    assert attempt("sys.exit(3)").why == "it ended with exit code 3 and no message"
    assert not attempt("pass").worked


def test_what_hangs_is_killed_with_all_that_it_started(attempt, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    note = tmp_path / "pid"
    lines = (
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    start = time.monotonic()

    tried = attempt(lines, seconds=5)

    assert tried.why == "it did not end within 5 s" and time.monotonic() - start < 60
    pid = int(note.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
