"""A rank that fails, dies, freezes or hangs ends the others soon, and the first cause is reported once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from atlas.launch import overseer
from atlas.system.process_control.interpreter import module_command
from tests.launch.test_launch_ranks import is_alive, wait_until
from tests.processes import end_tree

ROOT = Path(__file__).parents[2]
END_OF_CASE = "-- end of case --"  # as rank_probe.py has it
BOUND = 30.0  # seconds in which all is over, wherever the others are

Start = Callable[..., subprocess.Popen[str]]


def start_launcher(folder: Path, *cases: str, cwd: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "RANK")}
    environment = kept | variables | {"PYTHONPATH": str(ROOT)}
    command = [*module_command("tests.launch.rank_probe"), str(folder), *cases]
    # None of the processes is a fork of another: what is tested is how real ones end.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=cwd
    )


def write_namesakes(folder: Path) -> Path:
    """A folder of a user's modules with the names of others; each prints that it is imported, and ends the process."""
    (folder / "atlas").mkdir(parents=True)
    for name in ("atlas/__init__", "random", "queue", "socket", "types"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    return folder


def pids(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in sorted(folder.glob("*/ready_*"))]


# ---- what is said ----------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """The result of one set of ranks."""

    code: int
    seconds: float  # from when all ranks were at work
    said: list[str]  # lines on stderr
    folder: Path


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """One launcher has started all these ranks, one set after the other; its times of grace were shortened."""
    cases = [
        "sleep,kill",
        "reduce,raise,reduce",
        "raise,raise",
        "sleep,input",
        "sleep,exit",
        "sleep,crash",
        "sleep,linger",
        "reduce,hang",
        "hang,freeze",
        "hang,hold",
    ]
    folder = tmp_path_factory.mktemp("ranks")
    out, err = start_launcher(folder, *cases, PROBE_SHORT="1").communicate(timeout=280)
    found = [json.loads(line) for line in out.splitlines()]
    said = err.split(f"{END_OF_CASE}\n")
    assert len(found) == len(cases), err
    assert not any(is_alive(pid) for pid in pids(folder))
    return {
        case: Outcome(**end, said=text.splitlines(), folder=folder / str(number))
        for number, (case, end, text) in enumerate(zip(cases, found, said, strict=False))
    }


def test_a_killed_rank_is_named(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["sleep,kill"]

    assert end.code == 137
    assert end.said == ["Rank 1 was killed by SIGKILL; the machine may be out of memory.", "Rank 0 ended with it."]


def test_the_first_error_is_shown_once(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["reduce,raise,reduce"]

    assert end.code == 1
    assert end.said[:2] == ["Rank 1:", "Traceback (most recent call last):"]
    assert "rank_probe.py" in end.said[2]  # how the command line came to call it is of no interest
    assert end.said[-2:] == ["ValueError: a defect", "Ranks 0 and 2 ended with it."]
    assert len(end.said) < 8


def test_the_same_error_on_all_ranks_is_shown_once(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["raise,raise"]

    assert end.code == 1
    assert end.said.count("ValueError: a defect") == 1
    assert end.said[-1] in ("Rank 0 ended with it.", "Rank 1 ended with it.")


def test_wrong_input_that_a_rank_finds_is_its_message(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["sleep,input"]

    assert (end.code, end.said) == (2, ["data.path is on another machine.", "Rank 0 ended with it."])


def test_a_rank_that_leaves_without_a_word_is_named(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["sleep,exit"]

    assert (end.code, end.said) == (7, ["Rank 1 ended with code 7 without an error message.", "Rank 0 ended with it."])


def test_a_crash_in_c_shows_where_it_was(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["sleep,crash"]

    assert end.code == 139
    assert end.said[0] == "Rank 1 was killed by SIGSEGV."
    assert any("rank_probe.py" in line for line in end.said)


def test_a_failed_rank_that_takes_long_to_end_is_not_waited_for(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["sleep,linger"]

    assert end.code == 1
    assert end.said[-2:] == ["ValueError: a defect", "Rank 0 ended with it."]
    assert end.seconds < 15


def test_a_hang_ends_with_the_stack_of_each_rank(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["reduce,hang"]

    assert end.code == 1
    for rank, where in ((0, "all_reduce"), (1, "time.sleep")):
        stack = (end.folder / f"hang_rank_{rank}.txt").read_text()
        assert stack in "\n".join(end.said)
        assert re.match(rf"\d{{4}}-\S+ \S+ Rank {rank}: .* after step 3\. Its threads:\n\nThread MainThread:\n", stack)
        assert where in stack
    assert end.said[-1].startswith("Training has hung: 2 seconds without a step")


def test_a_frozen_rank_is_named_and_killed(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["hang,freeze"]

    assert end.code == 1
    assert end.said[-1] == "Rank 1 did not report and was killed; it was stopped (SIGSTOP)."
    assert {file.name for file in end.folder.glob("hang_*")} == {"hang_rank_0.txt"}


def test_a_rank_that_keeps_the_lock_of_python_is_asked_for_its_stack(outcomes: dict[str, Outcome]) -> None:
    end = outcomes["hang,hold"]

    assert end.code == 1
    assert "Rank 1 did not report and was killed; it was running." in end.said
    assert any("in hold_forever" in line for line in end.said)


# ---- when ------------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the launcher with one rank a role and wait until all ranks are at work."""
    started: list[subprocess.Popen[str]] = []

    def run(*roles: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
        started.append(start_launcher(tmp_path, ",".join(roles), cwd=cwd))
        ready = [tmp_path / "0" / f"ready_{rank}" for rank in range(len(roles))]
        wait_until(lambda: all(file.exists() for file in ready), seconds=120)
        return started[-1]

    yield run
    for process in started:
        end_tree(process)


def finish(process: subprocess.Popen[str], folder: Path, within: float) -> tuple[int, list[str]]:
    """The exit code and what was said, once launcher and ranks are gone, in at most these seconds from now."""
    now = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - now < within, said
    assert not any(is_alive(pid) for pid in pids(folder))
    return process.returncode, said.splitlines()[:-1]


@pytest.mark.parametrize("other", ["reduce", "sleep"])
def test_a_killed_rank_ends_those_in_a_collective_and_those_elsewhere(start: Start, tmp_path: Path, other: str) -> None:
    process = start(other, "reduce")
    os.kill(pids(tmp_path)[1], signal.SIGKILL)

    code, said = finish(process, tmp_path, within=BOUND)

    assert (code, said) == (
        137,
        ["Rank 1 was killed by SIGKILL; the machine may be out of memory.", "Rank 0 ended with it."],
    )


# ---- signals ---------------------------------------------------------------------------------------------


def test_the_warning_of_a_scheduler_lets_all_ranks_save(start: Start, tmp_path: Path) -> None:
    process = start("save", "save")
    process.send_signal(signal.SIGUSR1)

    assert finish(process, tmp_path, within=60) == (143, ["stopped by SIGTERM"])
    assert len(list(tmp_path.glob("0/saved_*"))) == 2


def test_from_a_folder_of_namesakes_ranks_meet_on_the_loopback_interface_and_save_when_the_terminal_goes(
    start: Start, tmp_path: Path
) -> None:
    namesakes = write_namesakes(tmp_path / "namesakes")
    process = start("meet", "meet", cwd=namesakes)

    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    listening = {c.laddr.ip for each in everyone for c in each.net_connections("inet") if c.status == "LISTEN"}
    process.send_signal(signal.SIGHUP)

    assert listening == {"127.0.0.1"}
    assert finish(process, tmp_path, within=60) == (143, ["stopped by SIGTERM"])
    assert len(list(tmp_path.glob("0/saved_*"))) == 2


def test_a_signal_to_every_process_is_one_signal(start: Start, tmp_path: Path) -> None:
    """As schedulers send it: the launcher passes on what the ranks have got already."""
    process = start("save", "save")
    for pid in pids(tmp_path):
        os.kill(pid, signal.SIGTERM)
    time.sleep(1.2)  # a machine that is busy with ending a job
    process.send_signal(signal.SIGTERM)

    assert finish(process, tmp_path, within=60)[0] == 143
    assert len(list(tmp_path.glob("0/saved_*"))) == 2


def test_a_second_signal_ends_all_at_once(start: Start, tmp_path: Path) -> None:
    process = start("reduce", "sleep")  # neither looks for signals, so that the first one changes nothing
    process.send_signal(signal.SIGINT)
    time.sleep(2.5)  # sooner, it could be the first one that a wrapper passes on
    assert process.poll() is None and all(is_alive(pid) for pid in pids(tmp_path))

    process.send_signal(signal.SIGINT)

    # Sooner than ranks that do not answer are given up.
    assert finish(process, tmp_path, within=overseer._STUCK_SECONDS) == (130, ["Ended at once by the second signal."])
