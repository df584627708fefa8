"""Work for several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from atlas.errors import InputError
from atlas.system.process_control.pool import run_jobs

_folder: Path | None = None


def begin(folder: Path) -> None:
    global _folder
    _folder = folder


def work(job: int) -> None:
    assert _folder is not None
    if job < 0:
        raise InputError("a negative job")
    (_folder / str(job)).write_text(str(os.getpid()))


def test_jobs_are_done_in_processes_of_their_own_or_here(tmp_path: Path) -> None:
    run_jobs("jobs", 3, [0, 1, 2], work, begin, (tmp_path,), workers=2)
    assert str(os.getpid()) not in {(tmp_path / str(i)).read_text() for i in range(3)}

    run_jobs("jobs", 3, [2], work, begin, (tmp_path,), workers=2, may_stay=True)  # one job: one worker
    assert (tmp_path / "2").read_text() == str(os.getpid())


def test_what_a_job_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a negative job"):
        run_jobs("jobs", 2, [0, -1], work, begin, (tmp_path,), workers=2)


def fail_to_begin(package: str) -> None:
    raise InputError(f"{package} is missing")


def test_what_the_start_of_a_process_raises_is_raised() -> None:
    with pytest.raises(InputError, match="the simulator is missing"):
        run_jobs("jobs", 2, [0, 1], work, fail_to_begin, ("the simulator",), workers=2)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_pool import begin, sleep
        from atlas.system.process_control.pool import run_jobs
        run_jobs("jobs", 2, [0, 1], sleep, begin, (Path(sys.argv[1]),), workers=2)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.getcwd()}) as parent:
        until(lambda: len(list(tmp_path.iterdir())) == 2)
        workers = [int(path.read_text()) for path in tmp_path.iterdir()]
        parent.kill()
        until(lambda: not any(psutil.pid_exists(pid) and _runs(pid) for pid in workers))


def sleep(job: int) -> None:
    work(job)
    time.sleep(60)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)
