"""Sweeps with wandb's own agent and a small server: through ./train.sh, on two processes, and from Python."""

from __future__ import annotations

import json
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_sweeps import ROOT, FakeSweeps, environment_for
from fake_wandb import ENTITY, PROJECT

from tests import warm
from tests.conftest import MakeLibero
from tests.processes import end_tree
from tests.test_processes import QUICK

pytest.importorskip("wandb")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def server() -> Iterator[FakeSweeps]:
    with FakeSweeps() as server:
        yield server
        server.shutdown()


@pytest.fixture
def atlas(server: FakeSweeps, tmp_path: Path) -> Run:
    """The command, for somebody who has logged in to the server."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = environment_for(server, tmp_path / "home") | variables
        return warm.atlas(*arguments, check=False, env=environment, cwd=tmp_path)

    return run


def write_sweep(folder: Path, data: Path, *options: str, steps: int = 3, **choices: list[Any]) -> Path:
    """A sweep file for tiny trainings on the CPU through the real ./train.sh."""
    parameters: dict[str, Any] = {key.replace("__", "."): {"values": values} for key, values in choices.items()}
    for override in [*QUICK, f"data.path={data}", f"output_dir={folder / 'out'}", f"training.max_steps={steps}"]:
        key, _, value = override.partition("=")
        parameters.setdefault(key, {"value": yaml.safe_load(value)})
    command = ["${env}", "bash", "${program}", "--wandb", "--cpu", *options, "${args_no_hyphens}"]
    sweep = {"method": "grid", "metric": {"name": "val/loss"}, "program": str(ROOT / "train.sh"), "command": command}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep | {"parameters": parameters}))
    return file


def config_of(server: FakeSweeps, run: str) -> dict[str, Any]:
    return {key: entry["value"] for key, entry in json.loads(server.runs[run]["config"]).items()}


def test_an_agent_trains_what_the_server_asks_for_and_two_processes_are_one_run(
    atlas: Run, server: FakeSweeps, make_libero: MakeLibero, tmp_path: Path
) -> None:
    file = write_sweep(
        tmp_path, make_libero(), "--mode", "multi", "--gpus=2", training__learning_rate=[0.001, 0.01], seed=[7]
    )

    made = atlas("sweep", "create", str(file), "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["path"] == f"{ENTITY}/{PROJECT}/sweep0" and told["url"].endswith("/sweeps/sweep0")
    assert server.sweeps["sweep0"]["method"] == "grid"

    worked = atlas("sweep", "agent", told["path"], "--count", "1")

    assert worked.returncode == 0, worked.stderr
    assert list(server.runs) == list(server.handed_out) == ["sweep0run0"]  # the agent's id, and no other run
    assert server.handed_out["sweep0run0"]["training.learning_rate"] == 0.001
    config = config_of(server, "sweep0run0")
    assert config["training"]["learning_rate"] == 0.001 and config["seed"] == 7
    assert config["distributed"]["gpus"] == 2
    steps = [row["train/step"] for row in server.runs["sweep0run0"]["rows"] if "train/loss" in row]
    assert steps == [1, 2, 3] and server.exit_codes == [0]
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.slow
def test_an_agent_that_is_stopped_stops_its_run_with_a_checkpoint(
    atlas: Run, server: FakeSweeps, make_libero: MakeLibero, tmp_path: Path
) -> None:
    file = write_sweep(tmp_path, make_libero(), steps=100_000, seed=[1])
    atlas("sweep", "create", str(file))
    environment = environment_for(server, tmp_path / "home")
    command = ["sweep", "agent", "sweep0"]
    agent = warm.start_atlas(*command, env=environment, cwd=tmp_path, stdout=warm.PIPE, stderr=warm.STDOUT)
    try:
        end = time.monotonic() + 120
        while not any("step      3/" in log.read_text() for log in tmp_path.glob("out/*/train.log")):
            assert time.monotonic() < end, "timed out"
            time.sleep(0.05)
        agent.send_signal(signal.SIGTERM)
        said = agent.communicate(timeout=120)[0]
    finally:
        end_tree(agent)

    (run,) = (tmp_path / "out").iterdir()
    saved = (run / "checkpoints" / "latest").resolve()
    assert int(saved.name.removeprefix("step_")) >= 3, said
    assert "the agent was stopped by SIGTERM" in said and agent.returncode == 143
    assert server.exit_codes == [143]


TRIAL = """
    import atlas, wandb

    def trial():
        values = wandb.init().config  # the agent's choice
        atlas.train(overrides=["wandb.enabled=true", *(f"{key}={value}" for key, value in values.items())])

    wandb.agent("somebody/atlas-vla/sweep0", trial, count=2)
"""


@pytest.mark.slow
def test_a_function_of_ones_own_trains_with_the_agents_values_and_its_run(
    atlas: Run, server: FakeSweeps, make_libero: MakeLibero, tmp_path: Path
) -> None:
    file = write_sweep(tmp_path, make_libero(), training__learning_rate=[0.001, 0.01], distributed__cpu=[True])
    atlas("sweep", "create", str(file))

    environment = environment_for(server, tmp_path / "home")
    done = warm.run("-c", textwrap.dedent(TRIAL), env=environment, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert sorted(server.runs) == sorted(server.handed_out) == ["sweep0run0", "sweep0run1"]
    for run, rate in (("sweep0run0", 0.001), ("sweep0run1", 0.01)):
        config = config_of(server, run)
        assert config["training"]["learning_rate"] == rate == config["training.learning_rate"]
        assert [row["train/step"] for row in server.runs[run]["rows"] if "train/loss" in row] == [1, 2, 3]
    assert server.exit_codes == [0, 0]


def test_what_cannot_be_is_one_message(atlas: Run, server: FakeSweeps, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("{method: bayes, parameters: {training.max_step: {values: [1]}}, command: [train.sh, X]}")
    file.write_text(file.read_text().replace("X", "'${args_no_hyphens}'"))
    wrong = atlas("sweep", "create", str(file))
    assert wrong.returncode == 2 and "Did you mean 'max_steps'?" in wrong.stderr
    assert server.operations == []  # nothing was asked of the server

    for arguments in (["create"], ["agent", "x"]):
        nobody = atlas("sweep", *arguments, WANDB_API_KEY="")
        assert nobody.returncode == 2 and "`wandb login`" in nobody.stderr, nobody.stderr

    unknown = atlas("sweep", "agent", "somebody/atlas-vla/nowhere")
    assert unknown.returncode == 1 and "nowhere not found" in unknown.stderr
    path = atlas("sweep", "agent", "a/b/c/d", WANDB_API_KEY="")
    assert path.returncode == 2 and "ENTITY/PROJECT/ID" in path.stderr
    for done in (wrong, unknown, path):
        assert "Traceback" not in done.stderr and done.stdout == ""
