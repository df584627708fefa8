"""Ranks that torchrun has started instead of Atlas's launcher: one of them prepares the run for all."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import time
import types
from pathlib import Path

import pytest

import atlas.train
from atlas.config import Config, load_config
from atlas.errors import InputError
from atlas.launch.rank import read_prepared, write_prepared
from atlas.training.guards.signals import Interrupted
from atlas.training.prepared_run import PreparedRun
from tests import warm
from tests.conftest import MakeLibero
from tests.test_vertical_slice import SMALL

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(*TORCHRUN, "-m", "atlas.cli", "train", "--cpu", *SMALL, *arguments, cwd=ROOT, children=2)


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


# ---- what rank 0 hands to the others ----------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [None, Path("runs/a b/checkpoints/step_00000002")])
def test_a_prepared_run_arrives_as_it_was(checkpoint: Path | None) -> None:
    config = load_config(None, ["run_name=名 1", "training.learning_rate=3e-5", "distributed.gpu_ids=[0,2]"])

    assert read_prepared(write_prepared(config, checkpoint)) == (config, checkpoint)


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(pickle.dumps((Config(), None))),
        "",
        "[" * 100_000,
        "[]",
        json.dumps({"config": {}}),
        json.dumps({"config": [], "checkpoint": None}),
        json.dumps({"config": {}, "checkpoint": ["/"]}),
        json.dumps({"config": {}, "checkpoint": None, "more": 1}),
        json.dumps({"config": {"output_dir": 3}, "checkpoint": None}),
    ],
)
def test_what_a_stranger_has_written_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match="rank 0 has prepared"):
        read_prepared(text)


# ---- how a rank that fails leaves --------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "destroyed"), [(ValueError("a defect"), False), (Interrupted(15), True)])
def test_the_process_group_is_closed_after_an_agreed_end_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, destroyed: bool
) -> None:
    """On GPUs, closing it waits for ranks that wait for this one."""
    closed: list[bool] = []
    accelerator = types.SimpleNamespace(
        num_processes=2,
        process_index=0,
        is_main_process=True,
        wait_for_everyone=lambda: None,
        end_training=lambda: closed.append(True),
    )

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("atlas.train.make_accelerator", lambda _: accelerator)
    monkeypatch.setattr("atlas.train.build_trainer", fail)

    with pytest.raises(type(error)):
        atlas.train.run(PreparedRun(load_config(None, [f"output_dir={tmp_path}", "run_name=fails"])))

    assert bool(closed) == destroyed


def test_a_rank_that_fails_is_gone_though_its_end_would_hang(tmp_path: Path) -> None:
    command = [*TORCHRUN, "-m", "tests.launch.rank_probe", "probe", str(tmp_path), "raise", "reduce"]
    start = time.monotonic()

    done = warm.run(*command, cwd=ROOT, env=os.environ | {"PROBE_ENDLESS_END": "1"}, children=2)

    assert done.returncode == 1
    assert done.stderr.count("\nValueError: a defect\n") == 1, done.stderr
    assert time.monotonic() - start < 120
