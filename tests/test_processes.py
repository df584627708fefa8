"""Several processes give what one gives, and signals end a run properly."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

import atlas
from atlas.policies.base import load_policy
from atlas.runs import read_scalars
from tests import warm
from tests.conftest import MakeLibero
from tests.test_vertical_slice import SMALL, run_atlas

QUICK = [*SMALL, "training.log_interval=1", "training.val_interval=3", "evaluation.episodes=0"]


def overrides(data: Path, out: Path, name: str, *more: str) -> list[str]:
    return [*QUICK, f"data.path={data}", f"output_dir={out}", f"run_name={name}", *more]


def test_two_processes_with_half_the_batch_give_the_same_numbers(make_libero: MakeLibero, tmp_path: Path) -> None:
    """Losses and validation of every step, with chunks that are padded differently on the ranks, and augmentation."""
    data = make_libero({"open the drawer": [12, 9, 11], "close the drawer": [10, 10, 7]})
    steps = "training.max_steps=6"

    run_atlas(["train", "--cpu", *overrides(data, tmp_path, "one", steps)])
    run_atlas(
        [
            "train",
            "--cpu",
            *overrides(data, tmp_path, "parts", steps, "data.batch_size=4", "training.gradient_accumulation_steps=2"),
        ]
    )
    run_atlas(
        [
            "train",
            "--cpu",
            "--mode",
            "multi",
            "--gpus",
            "2",
            *overrides(data, tmp_path, "two", steps, "data.batch_size=4"),
        ]
    )

    one = read_scalars(tmp_path / "one")
    for name in ("parts", "two"):
        other = read_scalars(tmp_path / name)
        compared = [tag for tag in one if tag.startswith(("train/", "val/"))]
        assert {"train/loss", "train/grad_norm", "val/loss", "val/pose_l2_error"} <= set(compared)
        for tag in compared:
            np.testing.assert_allclose(other[tag], one[tag], atol=1e-5, rtol=1e-4, err_msg=f"{name}: {tag}")
        ours, theirs = weights(tmp_path / "one"), weights(tmp_path / name)
        for tensor in ours:  # a bias before a norm of its own has rounding for a gradient, which Adam makes steps of
            np.testing.assert_allclose(theirs[tensor], ours[tensor], atol=3e-4, err_msg=f"{name}: {tensor}")


def weights(run: Path) -> dict[str, np.ndarray]:
    policy = load_policy(run / "checkpoints" / "latest")
    return {name: value.numpy() for name, value in policy.state_dict().items()}


@pytest.mark.parametrize(
    ("processes", "number", "code"),
    [
        (2, signal.SIGTERM, 143),
        (1, signal.SIGINT, 130),
        pytest.param(1, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_with_a_checkpoint(
    make_libero: MakeLibero, tmp_path: Path, number: int, code: int, processes: int
) -> None:
    data = make_libero()
    flags = ["--cpu", *(["--mode", "multi", "--gpus", "2"] if processes == 2 else [])]
    arguments = [*flags, *overrides(data, tmp_path, "run", "training.max_steps=100000", "data.num_workers=1")]
    process = warm.start_atlas("train", *arguments, stderr=warm.PIPE, start_new_session=True)
    assert process.stderr is not None
    try:
        reached = next((line for line in process.stderr if re.search(r"step\s+3/", line)), None)
        assert reached is not None, "it ended before its third step"
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal: every process gets it
        rest = process.communicate(timeout=120)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    assert process.returncode == code, rest
    assert "Traceback" not in rest
    saved = (tmp_path / "run" / "checkpoints" / "latest").resolve()
    assert int(saved.name.removeprefix("step_")) >= 3


def test_resuming_where_there_is_nothing_yet_starts_fresh(make_libero: MakeLibero, tmp_path: Path) -> None:
    done = run_atlas(
        ["train", "--cpu", "--resume", "auto", *overrides(make_libero(), tmp_path, "new", "training.max_steps=2")]
    )

    assert (tmp_path / "new" / "checkpoints" / "latest").exists(), done.stderr


KILLED = """
import os, signal, sys
import atlas
from atlas.checkpoints.background_writer import BackgroundWriter

begin = BackgroundWriter.begin

def begin_and_die(self, contents, then=None):
    begin(self, contents, then)
    if contents.state.step == 5:
        self.wait()
        os.kill(os.getpid(), signal.SIGKILL)

BackgroundWriter.begin = begin_and_die
atlas.train(None, sys.argv[1:])
"""


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(make_libero: MakeLibero, tmp_path: Path) -> None:
    """Eight steps in one go, and five and three in two: the same curves and weights.

    The fifth step is in the middle of steps that are logged together: the fourth to the sixth.
    """
    data = make_libero()
    schedule = ["training.max_steps=8", "training.warmup_steps=0", "training.log_interval=3", "distributed.cpu=true"]
    settings = [*schedule, "checkpoint.save_interval=5"]
    halves, latest = tmp_path / "halves", tmp_path / "halves" / "checkpoints" / "latest"
    killed = warm.run("-c", KILLED, *overrides(data, tmp_path, "halves", *settings))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert latest.resolve().name == "step_00000005" and not (halves / "results.json").exists()
    assert [step for step, _ in read_scalars(halves)["train/loss"]] == [3]

    atlas.train(None, overrides(data, tmp_path, "halves", *settings), resume="auto")
    atlas.train(None, overrides(data, tmp_path, "whole", *settings))

    one, other = read_scalars(tmp_path / "whole"), read_scalars(halves)
    assert other["train/restart"] == [(0, 0), (5, 1)]
    for curve in ("train/loss", "train/grad_norm", "train/lr", "train/epoch", "val/loss"):
        assert other[curve] == one[curve], curve
    assert [step for step, _ in other["train/loss"]] == [3, 6, 8]
    for a, b in zip(weights(tmp_path / "whole").values(), weights(halves).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_resume_auto_without_a_name_goes_on_with_the_unfinished_run(make_libero: MakeLibero, tmp_path: Path) -> None:
    data = make_libero()
    run_atlas(["train", "--cpu", *overrides(data, tmp_path, "unfinished", "training.max_steps=2")])
    run_atlas(["train", "--cpu", *overrides(data, tmp_path, "finished", "training.max_steps=2")])  # the newer
    (tmp_path / "unfinished" / "results.json").unlink()  # what a run writes last

    nameless = [o for o in overrides(data, tmp_path, "", "training.max_steps=4") if not o.startswith("run_name")]
    run_atlas(["train", "--cpu", "--resume", "auto", *nameless])

    assert {p.name for p in tmp_path.iterdir()} == {"demos", "finished", "unfinished"}
    assert (tmp_path / "unfinished" / "checkpoints" / "latest").resolve().name == "step_00000004"
