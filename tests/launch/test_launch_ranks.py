"""Real ranks under the real launcher: exit codes, signals, and what is left when the launcher is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import warm
from tests.processes import end_tree

PROBE = '''
"""A rank without a trainer: ends as its arguments say."""
import os, signal, sys, time
from pathlib import Path
from atlas.launch import die_with_launcher, leave_exit_code

die_with_launcher()
rank = int(os.environ["RANK"])

def end(code):
    leave_exit_code(code)
    sys.exit(code)

def stop(number, frame):
    time.sleep(0.3)  # writing a checkpoint
    (folder / f"stopped_{rank}").write_text(os.environ.get("OMP_NUM_THREADS", ""))
    end(1 if sys.argv[1] == "broken" and rank == 1 else 128 + number)

if sys.argv[1] == "codes":
    code = int(sys.argv[2 + rank])
    if code < 0:
        os.kill(os.getpid(), -code)
    end(code)
folder = Path(sys.argv[2])
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
(folder / f"partial_{rank}").write_text(str(os.getpid()))
os.replace(folder / f"partial_{rank}", folder / f"rank_{rank}")
while True:
    time.sleep(0.05)
'''

LAUNCHER = """
import json, sys
from atlas.launch import Plan, launch_ranks

for arguments in json.loads(sys.argv[1]):
    code = launch_ranks(arguments, Plan(2, cpu=True), module="rank_probe")
    print("ended with", code, flush=True)
sys.exit(code)
"""


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., warm.Started]]:
    """Start the launcher with these arguments for its ranks; several lists are run one after the other."""
    (tmp_path / "rank_probe.py").write_text(PROBE)
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "RANK")}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(tmp_path)])

    started: list[warm.Started] = []

    def start(*arguments: list[str]) -> warm.Started:
        pipes = {"stdout": warm.PIPE, "stderr": warm.PIPE}
        started.append(warm.start("-c", LAUNCHER, json.dumps(arguments), env=environment, children=2, **pipes))
        return started[-1]

    yield start
    for process in started:
        end_tree(process)


def wait_for_ranks(folder: Path) -> list[int]:
    """The process ids of both ranks, once they run."""
    files = [folder / "rank_0", folder / "rank_1"]
    wait_until(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_exit_codes_of_ranks_pass_through(launch: Callable[..., warm.Started]) -> None:
    cases = {("0", "0"): 0, ("2", "2"): 2, ("1", "1"): 1, ("143", "143"): 143, ("0", "7"): 7, ("0", "-9"): 137}
    process = launch(*[["codes", *codes] for codes in cases])
    out, err = process.communicate(timeout=120)
    assert [int(line.split()[-1]) for line in out.splitlines()] == list(cases.values())
    assert process.returncode == 137
    # The only thing that a rank could not say itself.
    told = err.strip().splitlines()
    assert told[0] == "Rank 1 was killed by SIGKILL; the machine may be out of memory."
    # Rank 0 had ended well, or was still at it when the other one was gone.
    assert told[1:] in ([], ["Rank 0 ended with it."])


@pytest.mark.parametrize(
    ("what", "number", "code"),
    [("good", signal.SIGTERM, 143), ("good", signal.SIGINT, 130), ("broken", signal.SIGTERM, 1)],
)
def test_signals_reach_the_ranks_and_they_finish(
    launch: Callable[..., warm.Started], tmp_path: Path, what: str, number: signal.Signals, code: int
) -> None:
    process = launch([what, str(tmp_path)])
    ranks = wait_for_ranks(tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [(tmp_path / f"stopped_{rank}").read_text() for rank in (0, 1)] == [threads, threads]
    assert not any(is_alive(pid) for pid in ranks)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
def test_killing_the_launcher_leaves_no_rank(launch: Callable[..., warm.Started], tmp_path: Path) -> None:
    process = launch(["good", str(tmp_path)])
    ranks = wait_for_ranks(tmp_path)
    process.kill()
    process.wait(timeout=60)
    wait_until(lambda: not any(is_alive(pid) for pid in ranks), seconds=10)
    process.communicate(timeout=60)
