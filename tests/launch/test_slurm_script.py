"""scripts/slurm.sh, with stand-ins for SLURM's commands: what it starts, and what it does when its time is over."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sh"
# Notes its arguments, and ends with $CODE, or after SIGUSR1 with 143 as a training does.
SRUN = """#!/usr/bin/env bash
trap 'sleep 0.3; exit 143' USR1
printf '%s\\n' "$@" >"$NOTES/partial" && mv "$NOTES/partial" "$NOTES/srun"
if [ -n "${CODE:-}" ]; then exit "$CODE"; fi
while true; do sleep 0.05; done
"""
SCONTROL = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$NOTES/scontrol"
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    started = []

    def run(*arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        slurm = {"SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "8", "NOTES": str(tmp_path)}
        path = {"PATH": os.pathsep.join([str(tools), os.environ["PATH"]])}
        started.append(subprocess.Popen([SCRIPT, *arguments], env={**os.environ, **slurm, **path, **variables}))
        end = time.monotonic() + 30
        while not (tmp_path / "srun").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        return started[-1]

    yield run
    for process in started:
        process.kill()


def test_it_starts_training_on_every_machine(start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    process = start("run_name=a b", "--wandb", CODE="7")

    assert process.wait(30) == 7
    arguments = (tmp_path / "srun").read_text().splitlines()
    own = ["--master-port", "14711", "--resume", "auto", "run_name=slurm-4711"]
    assert arguments[arguments.index("./train.sh") + 1 :] == [*own, "run_name=a b", "--wandb"]
    assert not (tmp_path / "scontrol").exists()


def test_when_its_time_is_over_it_saves_and_queues_again(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = start()
    process.send_signal(signal.SIGUSR1)

    assert process.wait(30) == 143
    assert (tmp_path / "scontrol").read_text().split() == ["requeue", "4711"]
