"""The whole path in miniature: demonstrations, training, evaluation in the simulator, resuming."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import av
import pytest

import atlas
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.runs import read_scalars
from atlas.train import Result
from tests import warm

SMALL = [
    "model.vision={name: keypoints, width: 8, keypoints: 8}",
    "model.fusion.dim=32",
    "model.fusion.layers=1",
    "model.language.dim=16",
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=0",
    *[
        f"logging.media.{kind}.interval=0"
        for kind in ("gradient_logger", "plot_logger", "action_logger", "vis_dataset")
    ],
]
SLICE = [
    *SMALL,
    "training.max_steps=20",
    "training.log_interval=5",
    "training.val_interval=10",
    "training.ema_decay=0.9",
    "checkpoint.save_interval=10",
    "evaluation.episodes=2",
    "evaluation.interval=20",
    "evaluation.final_episodes=2",
    "evaluation.video=1",
    "run_name=slice",
]


@pytest.fixture(scope="module")
def trained(cubes_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("outputs")
    return atlas.train(None, [*SLICE, f"data.path={cubes_dataset}", f"output_dir={out}"])


def test_a_run_leaves_what_a_user_looks_for(trained: Result) -> None:
    run = trained.run_dir

    assert {p.name for p in run.iterdir()} >= {"config.yaml", "train.log", "tensorboard", "videos", "checkpoints"}
    checkpoints = run / "checkpoints"
    assert (checkpoints / "latest").resolve().name == "step_00000020"
    assert trained.best_checkpoint.samefile(checkpoints / "best")
    assert {p.name for p in (checkpoints / "latest").iterdir()} == {"policy", "trainer"}
    log = (run / "train.log").read_text()
    assert "tensorboard --logdir" in log and "pick up the red cube" in log and str(trained.best_checkpoint) in log
    results = json.loads((run / "results.json").read_text())
    assert results["final_evaluation"]["episodes"] == 2


def test_the_board_shows_every_metric_with_finite_values(trained: Result) -> None:
    scalars = read_scalars(trained.run_dir)

    expected = {
        *(f"train/{n}" for n in ("loss", "pose_loss", "gripper_loss", "lr", "epoch", "step", "grad_norm")),
        *(f"val/{n}" for n in ("loss", "pose_loss", "gripper_loss", "pose_l2_error", "pose_l1_error")),
        *(f"val/{n}" for n in ("gripper_error", "gripper_accuracy", "position_error_mm", "rotation_error_deg")),
        *(f"val/pick_up_the_{c}_cube/position_error_mm" for c in ("red", "green")),
        *(f"perf/{n}" for n in ("samples_per_second", "step_seconds", "data_wait_seconds")),
        *(f"timer/{n}" for n in ("data", "forward", "backward", "optimizer", "total")),
        *(f"model/{n}" for n in ("total_parameters", "trainable_parameters", "file_size_mb")),
        *(f"best_model/{n}" for n in ("step", "value")),
        *(f"eval/{n}" for n in ("success_rate", "mean_reward", "episode_length")),
        *(f"eval/success_rate/pick_up_the_{c}_cube" for c in ("red", "green")),
    }
    assert expected <= set(scalars), sorted(expected - set(scalars))
    assert all(math.isfinite(value) for points in scalars.values() for _, value in points)
    assert [step for step, _ in scalars["train/loss"]] == [5, 10, 15, 20]
    assert [step for step, _ in scalars["val/loss"]] == [10, 20]
    assert [step for step, _ in scalars["eval/success_rate"]] == [20]


def test_the_film_of_an_episode_can_be_watched(trained: Result) -> None:
    assert trained.final_evaluation is not None
    first = trained.final_evaluation.outcomes[0]
    film = Path(str(first.video))

    assert film.is_relative_to(trained.run_dir / "videos") and film.stem.endswith(("success", "failure"))
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 20
    assert len(frames) > first.length and frames[0].shape == (378, 256, 3) and frames[0].std() > 10


def test_the_best_policy_is_evaluated_from_the_command_line(trained: Result, tmp_path: Path) -> None:
    command = ["eval", "--checkpoint", str(trained.run_dir), "--env", "cubes", "--episodes", "2", "--json"]

    done = run_atlas([*command, "--instruction-shuffle", "--video", str(tmp_path)])

    found = json.loads(done.stdout)
    assert (
        found["episodes"] == 2
        and len(found["ci95"]) == 2
        and set(found["per_instruction"])
        == {
            "pick up the red cube",
            "pick up the green cube",
        }
    )
    films = [film.name for film in tmp_path.glob("*.mp4")]
    assert sum(name.startswith("episode_") for name in films) == 2
    assert ("overview_of_failures.mp4" in films) == all("success" not in name for name in films)


def test_a_resumed_run_is_the_same_run(trained: Result) -> None:
    """Five more steps: the folder, the log and the curves go on."""
    more = ["training.max_steps=25", "evaluation.episodes=0"]

    result = atlas.train(None, more, resume=trained.run_dir)

    assert result.run_dir == trained.run_dir
    assert (result.run_dir / "checkpoints" / "latest").resolve().name == "step_00000025"
    steps = [step for step, _ in read_scalars(result.run_dir)["train/loss"]]
    assert steps == [5, 10, 15, 20, 25]
    assert load_policy(result.run_dir / "checkpoints" / "latest").config.fusion.dim == 32


def test_a_finished_run_is_not_written_over(trained: Result) -> None:
    out = trained.run_dir.parent
    data = next(o for o in (trained.run_dir / "config.yaml").read_text().splitlines() if "path:" in o).split(": ")[1]
    before = sorted(str(p) for p in trained.run_dir.rglob("*"))

    with pytest.raises(InputError, match=r"'slice'.*--resume auto"):
        atlas.train(None, [*SLICE, f"data.path={data}", f"output_dir={out}"])
    assert sorted(str(p) for p in trained.run_dir.rglob("*")) == before


def test_a_checkpoint_of_another_policy_is_refused(trained: Result) -> None:
    with pytest.raises(InputError, match=r"model\.fusion\.dim was 32 and is 64"):
        atlas.train(None, ["model.fusion.dim=64"], resume=trained.run_dir)


def run_atlas(arguments: list[str], check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    return warm.atlas(*arguments, check=check, **options)
