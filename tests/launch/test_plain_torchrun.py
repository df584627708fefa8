"""Ranks that torchrun has started instead of Atlas's launcher: one of them prepares the run for all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import MakeLibero
from tests.test_vertical_slice import SMALL

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "-m", "atlas.cli", "train", "--cpu", *SMALL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2])


def test_they_train_one_run_together(make_libero: MakeLibero, tmp_path: Path) -> None:
    job = ["training.max_steps=2", "evaluation.episodes=0", f"data.path={make_libero()}", f"output_dir={tmp_path}/runs"]

    done = run(*job)  # without a name, which each rank would choose for itself

    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "checkpoints" / "latest").resolve().name == "step_00000002"


def test_wrong_input_is_said_once(tmp_path: Path) -> None:
    done = run(f"data.path={tmp_path / 'absent'}", f"output_dir={tmp_path}/runs")

    assert done.returncode != 0
    assert done.stderr.count(f"{tmp_path / 'absent'}") == 1, done.stderr
    assert not (tmp_path / "runs").exists()
