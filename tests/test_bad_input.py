"""Wrong input from the command line: exit 2, one message that names it, no traceback, nothing touched."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from tests.conftest import MakeLibero
from tests.test_vertical_slice import SMALL, run_atlas


def refused(arguments: list[str], *words: str) -> None:
    done = run_atlas(arguments, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr.replace("\n", " "), done.stderr


def tree(folder: Path) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture
def train(make_libero: MakeLibero, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs `atlas train` with the wrong arguments on good data; sees that no output is begun."""
    data = make_libero()

    def run(*arguments: str, words: tuple[str, ...], path: Path | None = None) -> None:
        before = tree(tmp_path)
        base = [*SMALL, f"data.path={path or data}", f"output_dir={tmp_path / 'outputs'}", "evaluation.episodes=0"]
        refused(["train", "--cpu", *base, *arguments], *words)
        assert tree(tmp_path) == before

    return run


def test_config_keys_values_and_contradictions(train) -> None:  # type: ignore[no-untyped-def]
    train("training.lerning_rate=1", words=("training.lerning_rate", "Did you mean 'learning_rate'"))
    train("data.batch_size=0", words=("data.batch_size", "greater than or equal to 1"))
    train("training.num_epochs=2", words=("max_steps and num_epochs", "both are set"))


def test_things_that_are_not_there(train, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    train(path=tmp_path / "nowhere", words=("no dataset at", "nowhere"))
    train("--config", str(tmp_path / "none.yaml"), words=("none.yaml",))
    train("--resume", str(tmp_path / "norun"), words=("no checkpoint to resume from", "norun"))
    train("data.cameras=[side]", words=("data.cameras", "side", "agentview"))
    train("evaluation.env=cube", words=("cube", "Did you mean 'cubes'"))


def test_data_that_cannot_be_trained_on(train, make_libero: MakeLibero, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").mkdir()
    train(path=tmp_path / "empty", words=("holds no episodes", "empty"))
    train("data.action_horizon=13", words=("data.action_horizon is 13", "12 frames"))
    single = make_libero({"one": [9], "two": [8]}, folder="single")
    train(path=single, words=("one episode a task",))

    damaged = make_libero(folder="damaged")
    file = damaged / "task_0_demo.hdf5"
    with h5py.File(file, "a") as handle:
        del handle["data/demo_1/obs/gripper_states"]
    train(path=damaged, words=("task_0_demo.hdf5", "data/demo_1", "obs/gripper_states"))
    file.write_bytes(file.read_bytes()[:3000])
    train(path=damaged, words=("task_0_demo.hdf5", "truncated"))


def test_gpus_that_are_not_there(make_libero: MakeLibero, tmp_path: Path) -> None:
    import torch

    asked = torch.cuda.device_count() + 8
    base = [*SMALL, f"data.path={make_libero()}", f"output_dir={tmp_path / 'outputs'}"]
    refused(["train", "--gpus", str(asked), *base], str(asked), "found")
    assert not (tmp_path / "outputs").exists()


def test_evaluating_what_is_no_policy(tmp_path: Path) -> None:
    refused(["eval", "--checkpoint", str(tmp_path), "--env", "cubes"], "no policy at", str(tmp_path))
    refused(["eval", "--checkpoint", str(tmp_path), "--env", "cubez"], "cubez", "Did you mean 'cubes'")


def test_inspecting_says_what_is_there_and_what_looks_wrong(make_libero: MakeLibero) -> None:
    import json

    root = make_libero({"only this": [6, 7]})
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        for demo in file["data"].values():
            demo["actions"][:, 2] = 0.25
            demo["actions"][:, 6] = 0.5

    found = json.loads(run_atlas(["data", "inspect", str(root), "--json"]).stdout)

    assert (found["format"], found["episodes"], found["frames"], found["fps"]) == ("libero-hdf5", 2, 13, 20.0)
    assert found["tasks"] == {"only this": 2} and found["cameras"] == {"agentview": [32, 32], "eye_in_hand": [32, 32]}
    assert (found["action_dim"], found["proprio_dim"]) == (7, 8)
    assert found["action_min"][2] == found["action_max"][2] == 0.25
    warnings = " ".join(found["warnings"])
    assert "one instruction only" in warnings and "['dz', 'gripper'] never change" in warnings
    assert "not -1 (open) or +1 (close)" in warnings
    refused(["data", "inspect", str(root / "nowhere"), "--json"], "nowhere")
