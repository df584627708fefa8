"""A training with wandb: what wandb gets, the models it keeps, and resuming from one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import atlas
from atlas.runs import read_scalars
from tests import warm
from tests.test_vertical_slice import SMALL
from tests.tracking.tracked_run import KEY, run_script

pytest.importorskip("wandb")
sys.path.insert(0, str(Path(__file__).parent / "tracking"))

from fake_wandb import FakeWandb


@pytest.fixture(scope="module")
def server() -> Iterator[FakeWandb]:
    with FakeWandb() as running:
        yield running


def run(home: Path, server: FakeWandb, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the `atlas` command as somebody whose wandb is the fake server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(home), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    environment |= {"WANDB_CACHE_DIR": str(home / "cache"), "PYTHONPATH": str(Path(atlas.__file__).parents[1])}
    done = warm.atlas(*arguments, check=False, env=environment, cwd=home)
    assert done.returncode == code, done.stderr
    return done


TRAIN = ["train", "--cpu", *SMALL, "evaluation.episodes=0", "training.log_interval=1", "training.val_interval=4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: FakeWandb, cubes_dataset: Path) -> Path:
    """A home with a finished training in it: 8 steps, a checkpoint every 4."""
    home = tmp_path_factory.mktemp("home")
    steps = ["training.max_steps=8", "checkpoint.save_interval=4", "wandb.save_code=true"]
    run(home, server, *TRAIN, "--wandb", f"data.path={cubes_dataset}", "run_name=first", *steps)
    return home


def test_wandb_gets_the_same_scalars_as_tensorboard(home: Path, server: FakeWandb) -> None:
    board = read_scalars(home / "outputs/first")
    sent: dict[str, list[tuple[int, float]]] = {}
    (first,) = [r for r in server.runs.values() if r["displayName"] == "first"]
    for row in first["rows"]:
        for name, value in row.items():
            if not name.startswith("_") and isinstance(value, int | float):
                sent.setdefault(name, []).append((row["train/step"], value))

    assert {"train/loss", "val/position_error_mm", "perf/samples_per_second", "system/cpu_percent"} <= set(board)
    for name, values in board.items():
        if name != "train/step":  # the axis, which wandb has in every row
            assert [step for step, _ in sent[name]] == [step for step, _ in values], name
            assert [value for _, value in sent[name]] == pytest.approx([value for _, value in values], rel=1e-6), name


def test_wandb_gets_the_log_the_settings_the_code_and_where_all_comes_from(home: Path, server: FakeWandb) -> None:
    (first,) = [r for r in server.runs.values() if r["displayName"] == "first"]
    told = json.loads(first["config"])
    assert told["training"]["value"]["max_steps"] == 8
    about = told["run"]["value"]
    assert about["world_size"] == 1 and about["parameters"]["trainable"] > 0 and "torch" in about["packages"]
    assert about["git"] is None or len(about["git"]["commit"]) == 40

    lines = "\n".join(first["output"])
    assert "step 8/8" in lines and "Best checkpoint" in lines

    (code,) = [version for version in server.artifacts.versions if version.kind == "code"]
    assert "atlas/train.py" in code.manifest["contents"] or "train.py" in code.manifest["contents"]


def test_the_key_is_nowhere_but_where_it_was_given(home: Path, server: FakeWandb) -> None:
    holding = [path for path in home.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holding == []
    sent = [version.files for version in server.artifacts.versions]
    assert not any(KEY.encode() in data for files in sent for data in files.values())
    assert KEY not in json.dumps(server.runs, default=str) + json.dumps(server.run_variables, default=str)


def test_checkpoints_become_versions_with_aliases_and_metadata(home: Path, server: FakeWandb) -> None:
    versions = [v for v in server.artifacts.versions if v.name == "first"]

    assert len(versions) == 2 and all(v.committed for v in versions)
    aliases = server.artifacts.aliases[versions[0].entity, versions[0].project, "first"]
    assert aliases["step-4"] == versions[0].id and aliases["step-8"] == aliases["latest"] == versions[1].id
    assert aliases["best"] in (versions[0].id, versions[1].id)
    about = versions[1].metadata
    assert about["step"] == 8 and about["run_name"] == "first" and about["parameters"] > 0
    assert about["metrics"]["val/loss"] > 0 and about["dataset_fingerprint"] and about["config_hash"]
    assert "pick up the red cube" in str(versions[1].description) or "Atlas" in str(versions[1].description)
    assert {"config.yaml", "policy/model.safetensors", "trainer/state.json"} <= set(versions[1].manifest["contents"])
    assert not list((home / "outputs/first/wandb/staged").glob("*")), "what has arrived is not kept twice"


def test_a_training_goes_on_from_an_artifact_on_another_machine(home: Path, server: FakeWandb, tmp_path: Path) -> None:
    reference = "wandb:somebody/atlas-vla/first:step-4"

    run(tmp_path, server, "train", "--cpu", "--wandb", "--resume", reference, "training.max_steps=8")

    there, here = home / "outputs/first", tmp_path / "outputs/first"
    assert read_scalars(here)["train/loss"] == read_scalars(there)["train/loss"][4:]
    assert read_scalars(here)["train/restart"] == [(4, 1.0)]
    assert yaml.safe_load((here / "config.yaml").read_text())["run_name"] == "first"
    state = json.loads((here / "checkpoints/latest/trainer/state.json").read_text())
    assert state["wandb_id"] in server.runs and len(server.runs) == 1


def test_a_policy_is_evaluated_from_an_artifact(home: Path, server: FakeWandb, tmp_path: Path) -> None:
    reference = "wandb:somebody/atlas-vla/first:latest"

    done = run(tmp_path, server, "eval", "--checkpoint", reference, "--env", "cubes", "--episodes", "1", "--json")

    assert json.loads(done.stdout)["episodes"] == 1


def test_the_stop_button_ends_all_ranks_with_a_checkpoint(tmp_path: Path, cubes_dataset: Path) -> None:
    with FakeWandb() as server:
        server.stop = True
        ranks = ["--mode", "multi", "--gpus", "2", "--wandb"]
        endless = [f"data.path={cubes_dataset}", "run_name=stopped", "training.max_steps=100000"]
        done = run(tmp_path, server, *TRAIN, *ranks, *endless, code=143)

        assert len(server.runs) == 1 and server.exit_codes == [143], done.stderr
    assert (tmp_path / "outputs/stopped/checkpoints/latest").exists()
    assert "Traceback" not in done.stderr


def test_a_further_node_adds_its_machine_to_the_shared_run(tmp_path: Path) -> None:
    with FakeWandb() as server:
        for node in (0, 1):
            run_script(
                tmp_path,
                """
                from atlas.config import load_config
                from atlas.tracking.node_runs import SharedNode
                node = int(os.environ["NODE"])
                if node == 0:
                    part = make(wandb_id="shared12", shared=True)
                    part.log({"train/loss": 1.0}, step=1)
                else:
                    config = load_config(None, ["wandb.enabled=true", "wandb.shared=true", "run_name=a-run"])
                    part = SharedNode(config, run_dir, "shared12", node)
                time.sleep(3)
                part.finish(0)
                """,
                WANDB_BASE_URL=server.url,
                WANDB_API_KEY=KEY,
                NODE=str(node),
            ).expect(0)
        assert list(server.runs) == ["shared12"]
        assert [row["train/loss"] for row in server.history] == [1.0]
        labels = {key.rpartition("/l:")[2] for row in server.runs["shared12"]["events"] for key in row if "/l:" in key}
        assert labels == {"node-0", "node-1"}


def test_going_on_in_the_folder_of_another_run_is_refused(
    home: Path, server: FakeWandb, tmp_path: Path, cubes_dataset: Path
) -> None:
    run(tmp_path, server, *TRAIN, f"data.path={cubes_dataset}", "run_name=first", "training.max_steps=2")

    done = run(tmp_path, server, "train", "--cpu", "--resume", "wandb:somebody/atlas-vla/first:latest", code=2)

    assert "is a different run from wandb:somebody/atlas-vla/first:latest" in done.stderr
