"""Sweeps on one machine: what a file asks for, and real trainings that end, fail, are stopped and are continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from atlas.errors import InputError
from atlas.runs import read_scalars
from atlas.sweeps.grid import arguments_of, check_values, grid_points, local_start, read_start, read_sweep
from atlas.sweeps.local_grid import Grid, shared_gpus
from tests import warm
from tests.conftest import MakeLibero
from tests.test_processes import QUICK
from tests.test_vertical_slice import run_atlas

SHIPPED = Path(__file__).parents[1] / "atlas" / "configs" / "sweep.yaml"
ARGUMENTS = "${args_no_hyphens}"


def write_sweep(folder: Path, parameters: dict[str, Any], **keys: Any) -> Path:
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters} | keys, sort_keys=False))
    return file


# ---- files -----------------------------------------------------------------------------------------------


def test_the_file_that_is_shipped_is_right_for_both_ways() -> None:
    sweep = read_sweep(SHIPPED)
    start = read_start(sweep)
    assert start is not None and start.options == ["--wandb"]  # in a sweep of wandb's, nobody has to ask for it again
    check_values(sweep, start)

    points = grid_points(sweep)
    assert [point.name for point in points[:3]] == [
        "learning_rate=0.0003,layers=1",
        "learning_rate=0.0003,layers=2",
        "learning_rate=0.001,layers=1",
    ]
    assert len(points) == 6
    assert arguments_of(points[0], local_start(sweep), Path("out")) == [
        "--resume",
        "auto",
        "wandb.enabled=false",
        "training.learning_rate=0.0003",
        "model.fusion.layers=1",
        "training.max_steps=2000",
        'output_dir="out"',
        'run_name="learning_rate=0.0003,layers=1"',
    ]


def test_runs_are_named_after_what_is_varied_and_no_two_alike(tmp_path: Path) -> None:
    parameters = {
        "model.fusion.dim": {"values": [32]},
        "model.language.dim": {"values": [16]},
        "model.head.name": {"values": ["regression", "flow_matching"]},
        "data.cameras": {"values": [["agentview"], None]},
        "data.path": {"values": ["/data/demos", "/more/demos"]},
        "seed": {"value": 1},
    }
    names = [point.name for point in grid_points(read_sweep(write_sweep(tmp_path, parameters)))]

    assert names[3].startswith("fusion.dim=32,language.dim=16,head=regression,cameras=null,path=demos-")
    assert len(set(names)) == len(names) == 8
    assert not any("/" in name or name.startswith(".") for name in names)
    long = {"model.vision": {"values": [{"name": "vggt", "embed_dim": i, "depth": 2, "num_heads": 4} for i in (8, 16)]}}
    long |= {"data.path": {"values": ["a" * 150]}}
    names = [point.name for point in grid_points(read_sweep(write_sweep(tmp_path, long)))]
    assert len(set(names)) == 2 and all(len(name) < 150 for name in names)


def test_what_the_command_has_beside_the_values_reaches_every_run(tmp_path: Path) -> None:
    config = tmp_path / "base.yaml"
    config.write_text("training: {max_steps: 7}")
    command = [
        "${env}",
        "bash",
        "${program}",
        "--wandb",
        "--gpus",
        2,
        "--cpu",
        f"--config={config}",
        "seed=3",
        ARGUMENTS,
    ]
    file = write_sweep(tmp_path, {"data.batch_size": {"values": [4]}}, program="somewhere/train.sh", command=command)
    sweep = read_sweep(file)
    (point,) = grid_points(sweep)

    arguments = arguments_of(point, local_start(sweep), tmp_path)
    assert arguments[: arguments.index("wandb.enabled=false")] == [
        "--gpus",
        "2",
        "--cpu",
        "--resume",
        "auto",
        "--config",
        str(config),
    ]
    assert {"seed=3", "data.batch_size=4", 'run_name="batch_size=4"'} <= set(arguments)
    installed = write_sweep(tmp_path, {"seed": {"value": 1}}, command=["${env}", "atlas", "train", "--cpu", ARGUMENTS])
    assert local_start(read_sweep(installed)).options == ["--cpu"]


SEED = {"seed": {"values": [1, 2]}}
TRAIN_SH = {"program": "train.sh"}


@pytest.mark.parametrize(
    ("parameters", "keys", "message"),
    [
        (SEED, {"method": "bayes"}, "atlas sweep create"),
        (SEED, {"method": "random"}, "atlas sweep create"),
        (SEED, {"method": "gird"}, "'method': it is 'gird', expected one of grid, random, bayes"),
        ({}, {}, "'parameters': it should hold keys of the config"),
        ({"seed": 1}, {}, "'parameters.seed': it is 1, expected for example {values: [1, 2]}"),
        ({"seed": {"values": []}}, {}, "'parameters.seed': a grid takes values"),
        ({"seed": {"values": [1, 2, 1]}}, {}, "'parameters.seed': its values contain 1 twice"),
        ({"seed": {"min": 1, "max": 3}}, {}, "'parameters.seed': a grid takes values"),
        ({"run_name": {"values": ["a"]}}, {}, "'parameters.run_name': the grid sets it itself"),
        ({"trainin.max_steps": {"value": 1}}, {}, "Did you mean 'training'?"),
        ({"training.max_steps": {"values": [1, 0]}}, {}, "asks for max_steps=0"),
        (SEED, {"run_cap": 2}, "'run_cap': a grid on this machine does not use it"),
        (SEED, {"metric": {"name": "val/loss", "goal": "least"}}, "'metric.goal': it is 'least'"),
        (SEED, {"metric": {"name": "val/loss", "goal": {}}}, "'metric.goal': it is {}"),
        ({1: {"values": [1, 2]}}, {}, "'parameters.1': it is not a key of the config"),
        (SEED, {"metric": "val/loss"}, "'metric': expected for example {name: val/loss, goal: minimize}"),
        (SEED, {"program": "other.py"}, "'command': a grid on this machine starts Atlas"),
        (SEED, TRAIN_SH, "'command': it is missing"),
        (SEED, TRAIN_SH | {"command": ["bash", "${program}"]}, "${args_no_hyphens} is missing"),
        (SEED, {"command": ["bash", "train.sh", ARGUMENTS, "${args}"]}, "${args} is not key=value"),
        (SEED, {"command": ["bash", "train.sh", ARGUMENTS, "--resume", "x"]}, "--resume is not possible"),
        (SEED, {"command": ["bash", "train.sh", ARGUMENTS, "--log=x"]}, "--log=x is not possible"),
        (SEED, {"command": ["bash", "train.sh", ARGUMENTS, "seed=${envvar:S}"]}, "does not know seed=${envvar:S}"),
        (SEED, {"command": "bash train.sh"}, "'command': expected a list"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(
    tmp_path: Path, parameters: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    file = write_sweep(tmp_path, parameters, **keys)
    with pytest.raises(InputError) as error:
        Grid(read_sweep(file), tmp_path / "out")
    assert message in str(error.value) and str(file) in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00"])
def test_a_file_that_is_no_sweep_is_wrong_input(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    done = run_atlas(["sweep", "local", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")], check=False)
    assert done.returncode == 2 and "grid.yaml" in done.stderr and "Traceback" not in done.stderr


def test_values_that_no_run_would_take_are_found_before_a_sweep_is_made(tmp_path: Path) -> None:
    def check(**choice: Any) -> None:
        file = write_sweep(
            tmp_path,
            {"training.learning_rate": choice, "training.max_steps": {"value": 5}},
            method="bayes",
            command=["bash", "train.sh", ARGUMENTS],
        )
        sweep = read_sweep(file)
        start = read_start(sweep)
        assert start is not None
        check_values(sweep, start)

    check(distribution="log_uniform_values", min=0.0001, max=0.1)
    check(distribution="log_uniform", min=-9, max=-2)  # of the logarithm
    with pytest.raises(InputError, match=r"learning_rate=-1"):
        check(min=-1, max=1)


def test_gpus_are_shared_out_among_the_runs_at_a_time() -> None:
    assert shared_gpus(2, 8) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert shared_gpus(3, 8) == [(0, 1), (2, 3, 4), (5, 6, 7)]
    assert shared_gpus(2, 1) == [(0,), (0,)]
    assert shared_gpus(2, 0) == [(), ()]


# ---- real runs -------------------------------------------------------------------------------------------


@pytest.fixture
def grid_file(make_libero: MakeLibero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a sweep file for tiny trainings on the CPU, in which these vary; as in a job of two machines."""
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for each other cost more than they do
    data = make_libero()

    def write(metric: str = "val/loss", **varied: Any) -> Path:
        parameters = {key.replace("__", "."): choice for key, choice in varied.items()}
        for override in [*QUICK, f"data.path={data}"]:
            key, _, value = override.partition("=")
            parameters.setdefault(key, {"value": yaml.safe_load(value)})
        command = ["bash", "train.sh", "--cpu", "--wandb", ARGUMENTS]
        return write_sweep(tmp_path, parameters, metric={"name": metric}, command=command)

    return write


def sweep_local(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    points = 4  # at most; each is a process
    out = str(file.parent / "out")
    return run_atlas(["sweep", "local", str(file), "--out", out, *arguments], check=False, children=points)


def test_every_point_is_trained_a_failing_one_is_reported_and_the_finished_are_ranked(
    grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    later = tmp_path / "later"
    file = grid_file(
        data__path={"values": [str(tmp_path / "demos"), str(later)]},
        training__learning_rate={"values": [0.001, 0.01]},
        training__max_steps={"value": 3},
    )

    first = sweep_local(file, "--parallel", "2")

    assert first.returncode == 1, first.stderr
    assert (
        first.stdout.count(" failed with exit code 2 after") == 2
        and "::" not in first.stdout
        and str(later) in first.stdout
    )
    assert "2 finished, 2 failed" in first.stdout
    out = tmp_path / "out"
    finished = sorted(path.name for path in out.iterdir() if (path / "results.json").exists())
    assert len(finished) == 2 and not any((path / "wandb").exists() for path in out.iterdir())
    assert "training.learning_rate" in first.stdout and "ranking" in first.stdout

    later.symlink_to(tmp_path / "demos")  # what was wrong is mended: what is finished stays, the rest is trained
    before = {name: (out / name / "results.json").stat().st_mtime_ns for name in finished}
    second = sweep_local(file, "--parallel", "2", "--json")

    assert second.returncode == 0, second.stderr
    told = json.loads(second.stdout)
    assert [run["state"] for run in told["runs"]] == ["finished"] * 4
    assert [run["exit_code"] for run in told["runs"]].count(None) == 2  # they were finished already
    assert {name: (out / name / "results.json").stat().st_mtime_ns for name in finished} == before
    ranking = told["comparison"]["ranking"]
    losses = [run["value"] for run in ranking["runs"]]
    assert (ranking["metric"], losses) == ("val/loss", sorted(losses)) and len(losses) == 4
    assert set(told["comparison"]["config"]) == {"data.path", "training.learning_rate"}

    other = file.read_text().replace("training.max_steps:\n    value: 3", "training.max_steps:\n    value: 4")
    assert other != file.read_text()
    file.write_text(other)
    third = sweep_local(file)
    assert third.returncode == 2 and "training.max_steps was 3 and is 4" in third.stderr


def start_sweep(file: Path) -> warm.Started:
    arguments = ["sweep", "local", str(file), "--out", str(file.parent / "out")]
    return warm.start_atlas(*arguments, stdout=warm.PIPE, stderr=warm.STDOUT, start_new_session=True, children=2)


def latest_step(run: Path) -> int:
    link = run / "checkpoints" / "latest"
    return int(link.resolve().name.removeprefix("step_")) if link.exists() else 0


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_a_grid_that_is_stopped_or_killed_goes_on_where_it_was(grid_file: Callable[..., Path], tmp_path: Path) -> None:
    steps = 100
    file = grid_file(
        seed={"values": [1, 2]},
        training__max_steps={"value": steps},
        training__val_interval={"value": steps},
    )
    first, second = tmp_path / "out" / "seed=1", tmp_path / "out" / "seed=2"
    log = first / "train.log"

    process = start_sweep(file)
    try:
        wait_until(lambda: log.exists() and "step   3/100" in log.read_text())
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 130 and "the same command continues" in said, said
        stopped_at = latest_step(first)
        assert 3 <= stopped_at < steps and not second.exists()

        process = start_sweep(file)
        wait_until(lambda: f"step {stopped_at + 3:3d}/100" in log.read_text())
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate(timeout=60)
        assert psutil.wait_procs(children, timeout=60)[1] == []  # nothing is left, and its last step is saved
        assert latest_step(first) >= stopped_at + 3
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    done = sweep_local(file)

    assert done.returncode == 0, done.stdout + done.stderr
    for run in (first, second):
        assert [step for step, _ in read_scalars(run)["train/loss"]] == list(range(1, steps + 1))
    assert "Stopped" not in done.stdout and "2 finished" in done.stdout
