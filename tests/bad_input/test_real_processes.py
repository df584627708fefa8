"""A few rows as users meet them: the command in a separate process, `./train.sh`, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import warm
from tests.bad_input.table import SMALL, assert_is_a_message, contents, cut, flip
from tests.test_vertical_slice import run_atlas

ROOT = Path(__file__).parents[2]


def ended_well(place: Path, run: Callable[[], subprocess.CompletedProcess[str]], *words: str) -> str:
    """Run it, check that it is refused with one message and nothing on stdout, and return the message."""
    before = contents(place)

    done = run()

    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert_is_a_message(done.stderr, words)
    assert contents(place) == before
    return done.stderr


def train_script(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`./train.sh`, run in another folder, with this interpreter as the active environment's."""
    tools = place.with_name("tools")
    tools.mkdir()
    warm.write_python(tools)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": os.pathsep.join([str(tools), os.environ["PATH"]])}
    command = [str(ROOT / "train.sh"), *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["training.lerning_rate=1"], ["training.lerning_rate", "Did you mean 'learning_rate'"]),
        (["--cpu", "--gpu-ids", "0"], ["cpu is true but gpu_ids are given"]),
        (["--cpu", "--config", "gone.yaml"], ["gone.yaml"]),
        (["--cpu", "--resume", "gone"], ["no checkpoint", "gone"]),
        (["--cpu", "data.path=gone"], ["no dataset", "gone"]),
        (["--log"], ["--log needs a file"]),
        (["--log", "/proc/none/train.log"], ["--log", "/proc/none/train.log", "cannot be written"]),
    ],
)
def test_the_script_passes_a_refusal_on(place: Path, arguments: list[str], words: list[str]) -> None:
    ended_well(place, lambda: train_script(place, *arguments), *words)


def test_several_processes_are_refused_by_one_message(
    place: Path, good_data: Path, copied: Callable[[Path], Path]
) -> None:
    data = copied(good_data)
    cut(data / "task_1_demo.hdf5", 0.5)
    arguments = ["--cpu", "--mode", "multi", "--gpus", "2", *SMALL, f"data.path={data}"]

    said = ended_well(place, lambda: train_script(place, *arguments), "task_1_demo.hdf5", "truncated")

    assert said.count("cannot be read as HDF5") == 1


def test_more_gpus_than_there_are(place: Path, good_data: Path) -> None:
    asked = torch.cuda.device_count() + 8
    arguments = ["train", "--gpus", str(asked), *SMALL, f"data.path={good_data}"]

    ended_well(place, lambda: run_atlas(arguments, check=False, cwd=place, env=with_atlas()), f"{asked} GPUs", "found")


def test_a_damaged_checkpoint_through_the_script(place: Path, good_run: Path, copied: Callable[[Path], Path]) -> None:
    run_dir = copied(good_run)
    flip(run_dir / "checkpoints" / "step_00000002" / "policy" / "model.safetensors", -1000)

    ended_well(
        place,
        lambda: train_script(place, "--cpu", "--resume", str(run_dir / "checkpoints" / "latest")),
        "model.safetensors",
        "step_00000002",
    )


def test_an_evaluation_of_no_policy_keeps_stdout_for_json(place: Path) -> None:
    arguments = ["eval", "--checkpoint", str(place), "--env", "cubes", "--json"]

    ended_well(place, lambda: run_atlas(arguments, check=False, cwd=place, env=with_atlas()), "no policy", str(place))


def with_atlas() -> dict[str, str]:
    """The environment in which this checkout is found from every folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
