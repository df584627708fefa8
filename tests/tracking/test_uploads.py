"""Uploads of models to wandb, against a server that takes them, refuses them, and does not answer."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb")

from fake_wandb import FakeWandb
from local_wandb import fake_wandb_here, start_run
from waiting import Waited

import atlas
from atlas.tracking.records import Model
from atlas.tracking.uploads import ModelUploads, stage_model

CARD = "# wandb:ENTITY/atlas-vla/run:step-1"  # whose run it is, only the server says
SOON = 60.0  # seconds; far more than anything here takes
MakeModel = Callable[..., Model]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeWandb]:
    with fake_wandb_here(tmp_path / "home") as server:
        yield server


@pytest.fixture
def staged(tmp_path: Path) -> MakeModel:
    """A checkpoint of a run, staged and then deleted, as the trainer does it with old ones."""

    def make(step: int, *aliases: str, **changes: Any) -> Model:
        run_dir = tmp_path / "run"
        checkpoint = run_dir / "checkpoints" / f"step_{step:08d}"
        for name, content in {
            "policy/model.safetensors": f"weights {step}",
            "policy/processor.json": "{}",
            "trainer/state.json": json.dumps({"step": step}),
        }.items():
            (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
            (checkpoint / name).write_text(content)
        (run_dir / "config.yaml").write_text("run_name: run\n")
        metadata = {"step": step, "metrics": {"val/loss": 1 / step, "val/worst": float("inf")}}
        model = Model(checkpoint, "run", ["latest", f"step-{step}", *aliases], metadata, step, CARD)
        ready = stage_model(model, run_dir / "wandb" / "staged")
        for file in checkpoint.rglob("*.*"):
            file.unlink()
        return ready

    return make


def uploads(run: Any, **settings: Any) -> ModelUploads:
    import wandb

    return ModelUploads(wandb, run, **settings)


def finish(sending: ModelUploads) -> bool:
    return sending.finish(time.monotonic() + SOON)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("atlas")]


def test_checkpoints_arrive_whole_with_aliases_metadata_and_card(
    server: FakeWandb, staged: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sending = uploads(start_run(tmp_path / "run"))
    models = [staged(10, "best"), staged(20), staged(30, "best", "mine")]
    for model in models:
        sending.add(model)

    assert finish(sending)
    assert warnings(caplog) == []
    assert server.artifacts.names("run") == {
        "v0": ["step-10"],
        "v1": ["step-20"],
        "v2": ["best", "latest", "mine", "step-30"],
    }
    newest = server.artifacts.find("run", "best")
    assert newest.files == {
        "config.yaml": b"run_name: run\n",
        "policy/model.safetensors": b"weights 30",
        "policy/processor.json": b"{}",
        "trainer/state.json": b'{"step": 30}',
    }
    assert newest.kind == "model"
    assert newest.description == "# wandb:somebody/atlas-vla/run:step-1"
    assert newest.metadata == {"step": 30, "metrics": {"val/loss": 1 / 30, "val/worst": None}}
    assert not any(model.path.exists() for model in models)  # nobody needs them any more


def test_old_versions_go_but_not_the_best_nor_what_somebody_wants(
    server: FakeWandb, staged: MakeModel, tmp_path: Path
) -> None:
    sending = uploads(start_run(tmp_path / "run"), keep_last_n=2)
    for model in (staged(1, "best"), staged(2, "mine"), staged(3), staged(4), staged(5)):
        sending.add(model)

    assert finish(sending)
    assert list(server.artifacts.names("run")) == ["v0", "v1", "v3", "v4"]
    assert server.artifacts.find("run", "best").metadata["step"] == 1


def test_every_model_is_linked_to_the_registry_and_stays_while_something_there_points_to_it(
    server: FakeWandb, staged: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    run = start_run(tmp_path / "run")
    sending = uploads(run, keep_last_n=1, registry="models/cubes")
    for model in (staged(1), staged(2, "best"), staged(3)):
        sending.add(model)
    wait_until(lambda: list(server.artifacts.names("run")) == ["v1", "v2"])
    run.link_artifact(wandb.Api().artifact("somebody/atlas-vla/run:v2"), "wandb-registry-others/mine")
    for model in (staged(4), staged(5)):
        sending.add(model)

    assert finish(sending)
    assert warnings(caplog) == []
    assert list(server.artifacts.names("run")) == ["v1", "v2", "v4"]  # the best one, somebody's, the last one
    (cubes, _) = server.artifacts.links
    assert cubes[1:] == ("wandb-registry-models", "cubes")
    assert server.artifacts.find("cubes", "best").metadata["step"] == 2
    assert server.artifacts.find("cubes", "latest").metadata["step"] == 5


def test_a_refused_model_is_reported_once_and_sent_again_before_the_next(
    server: FakeWandb, staged: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.artifacts.refuse_commits = 1
    sending = uploads(start_run(tmp_path / "run"))
    sending.add(staged(1, "best"))
    wait_until(lambda: warnings(caplog))
    sending.add(staged(2))

    assert finish(sending)
    (warning,) = warnings(caplog)
    assert "did not take the model run of step 1" in warning and "the commit is refused" in warning
    assert {v.metadata["step"] for v in server.artifacts.versions if v.committed} == {1, 2}
    assert server.artifacts.find("run", "latest").metadata["step"] == 2
    assert server.artifacts.find("run", "best").metadata["step"] == 1


def test_an_older_model_that_comes_late_takes_no_alias_from_a_newer_one(
    server: FakeWandb, staged: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.artifacts.refuse_commits = 1
    sending = uploads(start_run(tmp_path / "run"))
    first, second = staged(1, "best"), staged(2, "best")
    sending.add(first)
    wait_until(lambda: warnings(caplog))
    server.artifacts.refuse_commits = 1  # the second attempt fails as well, and the next model overtakes it
    sending.add(second)

    assert finish(sending)
    assert server.artifacts.find("run", "step-1").index > server.artifacts.find("run", "step-2").index
    for alias in ("best", "latest"):
        assert server.artifacts.find("run", alias).metadata["step"] == 2


def test_an_upload_that_gets_no_answer_holds_up_neither_training_nor_the_exit(
    server: FakeWandb, staged: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.artifacts.silent_files = True
    run = start_run(tmp_path / "run")
    sending = uploads(run)
    model = staged(1)
    adding = Waited()
    sending.add(model)
    assert adding.seconds < 0.5

    start, finishing = time.monotonic(), Waited()
    assert not sending.finish(start + 2)
    assert time.monotonic() - start > 1.5 and finishing.seconds < 4
    (warning,) = warnings(caplog)
    assert f"atlas model push {model.path} --project atlas-vla --entity somebody" in warning
    assert (model.path / "files" / "policy" / "model.safetensors").read_text() == "weights 1"


DEAD = """
import os, sys, time
from pathlib import Path
import psutil, wandb
from fake_wandb import FakeWandb
from local_wandb import local_wandb, start_run
from atlas.tracking.records import Model
from atlas.tracking.uploads import ModelUploads, stage_model
from waiting import Waited

folder = Path(sys.argv[1])
(folder / "policy").mkdir()
(folder / "policy" / "weights").write_text("w")
with FakeWandb() as server, local_wandb(folder / "home", server.url):
    sending = ModelUploads(wandb, start_run(folder / "run"))
    (core,) = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
    core.kill()
    core.wait()
    for step in (1, 2):
        sending.add(stage_model(Model(folder / "policy", "run", [], {}, step, ""), folder / "staged"))
    waited = Waited()
    print(sending.finish(time.monotonic() + 30), waited.seconds, flush=True)
    os._exit(0)  # what wandb does at the exit then is not the question here
"""


def test_a_dead_wandb_process_ends_it_at_once_and_says_what_is_left(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(atlas.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", DEAD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=2 * SOON,
    )
    arrived, seconds = done.stdout.split()
    assert arrived == "False" and float(seconds) < 15
    assert f"atlas model push {tmp_path / 'staged' / '0002'}" in done.stderr


def test_many_failures_do_not_fill_the_disk_and_the_best_model_is_kept(
    server: FakeWandb, staged: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.artifacts.refuse_commits = 1000
    sending = uploads(start_run(tmp_path / "run"))
    models = [staged(step, *(["best"] if step == 1 else [])) for step in range(1, 8)]
    for model in models:
        sending.add(model)

    assert not finish(sending)
    assert [model.step for model in models if model.path.exists()] == [1, 5, 6, 7]
    assert any("3 older models that failed were given up" in warning for warning in warnings(caplog))


def test_an_offline_run_keeps_its_models_for_wandb_sync(
    server: FakeWandb, staged: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    run = start_run(tmp_path / "run", mode="offline")
    folder = Path(run.dir).parent
    sending = uploads(run, keep_last_n=1, registry="models/cubes")
    models = [staged(1, "best"), staged(2)]
    for model in models:
        sending.add(model)
    assert finish(sending)
    run.finish()
    wandb.teardown()

    assert warnings(caplog) == [] and server.operations == []
    records = [record["artifact"] for record in inspect(folder) if record["type"] == "artifact"]
    logged = [record for record in records if record["type"] == "model"]
    assert [(record["name"], set(record["aliases"])) for record in logged] == [
        ("run", {"best", "latest", "step-1"}),
        ("run", {"latest", "step-2"}),
    ]
    assert [json.loads(record["metadata"])["step"] for record in logged] == [1, 2]
    assert all((model.path / "files" / "trainer" / "state.json").exists() for model in models)

    program = Path(sys.executable).with_name("wandb")
    done = subprocess.run([str(program), "sync", str(folder)], capture_output=True, text=True, timeout=SOON)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.artifacts.names("run") == {"v0": ["best", "step-1"], "v1": ["latest", "step-2"]}
    assert server.artifacts.find("run", "best").files["policy/model.safetensors"] == b"weights 1"


def inspect(folder: Path) -> list[dict[str, Any]]:
    """The records of an offline run, as wandb's own program reads them."""
    program = Path(sys.executable).with_name("wandb")
    command = [str(program), "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SOON, env=os.environ)
    return [json.loads(line) for line in done.stdout.splitlines()]


def wait_until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
