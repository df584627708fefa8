"""Trainings that are killed at random moments continue as if nothing had happened: a short benchmarks/faults.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atlas.checkpoints import Checkpoints
from atlas.checkpoints.run_folder import Retention
from tests.training.written import small

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import faults


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_killed_trainings_go_on_to_the_same_end(cubes_dataset: Path) -> None:
    assert struck_in_saves(cubes_dataset, runs=40, scripted=16, seed=1) > 0


def struck_in_saves(data: Path, runs: int, scripted: int, seed: int) -> int:
    """How many saves the strikes have interrupted; none of them lost anything."""
    options = ["--runs", str(runs), "--through-train-sh", str(scripted), "--seed", str(seed), "--data", str(data)]
    process = subprocess.Popen(
        [sys.executable, faults.__file__, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate()
    finally:
        process.terminate()  # it ends its trainings
        process.wait(timeout=60)
    assert (process.returncode, out.splitlines()[-1:]) == (0, [f"broken: 0 of {runs}"]), out + err
    (total,) = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| all |")]
    assert (total[1], total[5], total[6]) == (str(runs), "0", str(runs)), out
    return int(total[3])


def test_a_damaged_checkpoint_and_a_link_to_none_are_found(tmp_path: Path) -> None:
    """What the script relies on."""
    checkpoints = Checkpoints(tmp_path, Retention(last_n=2))
    for step in (3, 6):
        checkpoints.write(small(step, "weights", best_step=3))
    assert faults.damage(tmp_path) == []

    (checkpoints.path(3) / "policy" / "model.safetensors").write_text("Weights")
    assert [line.partition(":")[0] for line in faults.damage(tmp_path)] == ["step_00000003", "best"]

    checkpoints.path(6).rename(tmp_path / "elsewhere")
    assert [line.partition(":")[0] for line in faults.damage(tmp_path)] == ["step_00000003", "latest", "best"]
