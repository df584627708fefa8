"""What asks a training to stop, and what does not."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest

from atlas.training.guards.signals import Interrupted, listening


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 143)],
)
def test_the_signals_that_ask_for_a_checkpoint(number: signal.Signals, code: int) -> None:
    with listening() as stop:
        os.kill(os.getpid(), number)

    assert stop.signal == number
    assert Interrupted(number).exit_code == code


def test_under_nohup_the_end_of_the_terminal_changes_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


WRITES = """
import os, sys
from atlas.system.process_control.terminal import leave_lost_terminal
os.read(int(sys.argv[1]), 1)
leave_lost_terminal()
print("to nobody", flush=True)
print("to nobody", file=sys.stderr, flush=True)
"""


def test_what_is_printed_after_the_terminal_is_gone_raises_nothing() -> None:
    terminal, theirs = pty.openpty()
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(reading)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        pass_fds=[reading],
        start_new_session=True,
    )
    for descriptor in (theirs, terminal, reading, writing):  # the terminal is closed, then it hears of it
        os.close(descriptor)

    assert process.wait(60) == 0
