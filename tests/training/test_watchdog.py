"""A process that hangs shows where and ends; and how signals are noted. Each test uses a separate process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import end_tree

ROOT = Path(__file__).parents[2]
# The package's own __init__ imports the trainer, which takes seconds and is not needed here.
START = """
import os, sys, threading, time, types
from pathlib import Path
import atlas
package = sys.modules["atlas.training"] = types.ModuleType("atlas.training")
package.__path__ = [str(Path(atlas.__file__).parent / "training")]
from atlas.training.guards.signals import Interrupted, listening
from atlas.training.guards.watchdog import Heartbeat, Watchdog

folder, heartbeat = Path(sys.argv[1]), Heartbeat()

def ready():
    (folder / "ready").touch()
"""

Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run these lines in a process, and wait until they call `ready()`."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", START + code, str(tmp_path)], stderr=subprocess.PIPE, text=True, cwd=ROOT
            )
        )
        end = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and started[-1].poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        return started[-1]

    yield run
    for process in started:
        end_tree(process)


def test_a_hang_ends_with_the_stack_of_every_thread(start: Start, tmp_path: Path) -> None:
    process = start("""
def wait_for_a_lock():
    lock = threading.Lock()
    while True:
        lock.acquire()

def reader():
    time.sleep(1000)

threading.Thread(target=reader, name="a-reader", daemon=True).start()
with Watchdog(heartbeat, 1.0, 3, folder):
    heartbeat.beat("step 7")
    ready()
    wait_for_a_lock()
""")
    _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "Rank 3: nothing has happened for 1 seconds (distributed.timeout_minutes) after step 7." in said
    main, other = said.split("Thread a-reader:\n")
    assert "Thread MainThread:\n" in main and "in wait_for_a_lock" in main
    assert "in reader" in other
    assert (tmp_path / "hang_rank_3.txt").read_text() == said


def test_a_process_that_goes_on_is_left_alone(start: Start, tmp_path: Path) -> None:
    process = start("""
with Watchdog(heartbeat, 2.0, 0, folder):
    ready()
    for step in range(60):
        heartbeat.beat(f"step {step}")
        time.sleep(0.05)
time.sleep(2.5)
""")
    _, said = process.communicate(timeout=60)

    assert (process.returncode, said) == (0, "")
    assert not (tmp_path / "hang_rank_0.txt").exists()


def test_a_process_that_was_stopped_for_a_while_has_not_hung(start: Start, tmp_path: Path) -> None:
    process = start("""
with Watchdog(heartbeat, 2.0, 0, folder):
    ready()
    while not (folder / "end").exists():
        time.sleep(0.1)
        heartbeat.beat("a wait")
""")
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    time.sleep(1)
    (tmp_path / "end").touch()

    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_a_terminal_that_takes_no_more_does_not_keep_it_alive(start: Start, tmp_path: Path) -> None:
    process = start("""
with Watchdog(heartbeat, 1.0, 0, folder):
    ready()
    while True:
        print("x" * 1000, file=sys.stderr)  # nobody reads it
""")
    assert process.wait(60) == 1
    assert "Thread MainThread" in (tmp_path / "hang_rank_0.txt").read_text()


# ---- signals ---------------------------------------------------------------------------------------------

LISTEN = """
with listening() as stop:
    ready()
    while stop.signal is None:
        time.sleep(0.02)
    if {linger}:
        (folder / "noted").touch()
        time.sleep(1000)
error = Interrupted(stop.signal)
print(error, file=sys.stderr)
sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_the_first_signal_is_noted(start: Start, number: signal.Signals, code: int) -> None:
    process = start(LISTEN.format(linger=False))
    process.send_signal(number)

    assert process.communicate(timeout=60)[1] == f"stopped by {number.name}\n"
    assert process.returncode == code


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGTERM)])
def test_the_second_signal_ends_at_once(
    start: Start, tmp_path: Path, numbers: tuple[signal.Signals, signal.Signals]
) -> None:
    process = start(LISTEN.format(linger=True))
    process.send_signal(numbers[0])
    while not (tmp_path / "noted").exists():
        time.sleep(0.02)
    os.kill(process.pid, numbers[1])

    assert process.wait(5) == -numbers[1]
