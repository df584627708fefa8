"""What a run shows of its evaluations' episodes: distributions, films, and files of outcomes."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import av
import pytest
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atlas.config import EpisodeLoggerConfig, EvaluationConfig, LoggingConfig, WandbConfig
from atlas.policies.modular.policy import ModularPolicy
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.tracking import RunTracker
from atlas.training.judging.closed_loop import ClosedLoop
from atlas.training.media.episode_logger import EpisodeLogger
from tests import warm
from tests.policies.test_policy import make_policy
from tests.test_vertical_slice import SMALL
from tests.tracking.tracked_run import Finished


@pytest.fixture(scope="module")
def run(cubes_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two steps on two processes, three episodes then and two at the end, with TensorBoard and an offline wandb."""
    out, home = tmp_path_factory.mktemp("outputs"), tmp_path_factory.mktemp("home")
    keys = {
        "run_name": "two",
        "output_dir": out,
        "data.path": cubes_dataset,
        "training.max_steps": 2,
        "evaluation.episodes": 3,
        "evaluation.final_episodes": 2,
        "evaluation.video": 1,
        "evaluation.execute": 8,
        "wandb.enabled": True,
        "wandb.mode": "offline",
    }
    names = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    variables = {name: str(home / name) for name in names} | {"HOME": str(home)}
    command = ["train", "--cpu", "--mode", "multi", "--gpus", "2", *SMALL, *(f"{k}={v}" for k, v in keys.items())]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = warm.atlas(*command, check=False, env=kept | variables)
    return Finished(done.returncode, done.stdout, done.stderr, out / "two", home)


def board_of(run_dir: Path) -> EventAccumulator:
    board = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    board.Reload()
    return board


def test_several_processes_make_one_set_of_films(run: Finished) -> None:
    assert run.code == 0, run.stderr
    videos = run.run_dir / "videos"
    films = {folder.name: sorted(file.name for file in folder.iterdir()) for folder in videos.iterdir()}

    assert set(films) == {"step_00000002", "final_step_00000002"}
    assert [name.split("_")[0] for name in films["step_00000002"]] == ["best", "median", "worst"]
    # Of two episodes none is the median.
    of_episodes = [name for name in films["final_step_00000002"] if name != "overview_of_failures.mp4"]
    assert [name.split("_pick")[0] for name in of_episodes] == ["best_episode_000", "worst_episode_001"]
    assert all(name.endswith(("success.mp4", "failure.mp4")) for name in [*films["step_00000002"], *of_episodes])
    final = EvaluationReport.load(run.run_dir / "evaluations" / "final_step_00000002.json")
    for folder, names in films.items():
        for name in {*names} - {"overview_of_failures.mp4"}:
            with av.open(str(videos / folder / name)) as container:
                stream = container.streams.video[0]
                assert stream.frames > 10 and stream.width == 256
                if "final" in folder:  # every step of the first, since evaluation.video is 1
                    assert (stream.frames > final.outcomes[0].length) == ("episode_000" in name)


def test_every_evaluation_leaves_its_outcomes(run: Finished) -> None:
    folder = run.run_dir / "evaluations"
    assert {p.name for p in folder.iterdir()} == {"selection_step_00000002.json", "final_step_00000002.json"}

    selection, final = (EvaluationReport.load(folder / f"{kind}_step_00000002.json") for kind in ("selection", "final"))

    assert (selection.purpose, selection.step, len(selection.outcomes)) == ("selection", 2, 3)
    assert (final.purpose, final.step, len(final.outcomes)) == ("final", 2, 2)
    seeds = [[outcome.seed for outcome in report.outcomes] for report in (selection, final)]
    assert seeds == [sorted(each) for each in seeds] and not {*seeds[0]} & {*seeds[1]}
    results = json.loads((run.run_dir / "results.json").read_text())
    assert results["final_evaluation"] == final.to_dict()


def test_tensorboard_shows_the_films_and_the_distributions(run: Finished) -> None:
    board = board_of(run.run_dir)
    report = EvaluationReport.load(run.run_dir / "evaluations" / "selection_step_00000002.json")

    for tag in ("eval/video_best", "eval/video_median", "eval/video_worst", "eval/final/video_best"):
        (event,) = board.Images(tag)
        with Image.open(io.BytesIO(event.encoded_image_string)) as gif:
            assert event.step == 2 and gif.format == "GIF" and getattr(gif, "n_frames", 1) > 10
            assert gif.width == 256 and gif.height > 340  # as large as the film, so that its text can be read
    (lengths,) = board.Histograms("eval/length_distribution")
    assert lengths.histogram_value.num == 3
    assert lengths.histogram_value.sum == sum(outcome.length for outcome in report.outcomes)
    (returns,) = board.Histograms("eval/final/return_distribution")
    assert returns.histogram_value.num == 2


def test_wandb_holds_the_films_and_the_distributions(run: Finished) -> None:
    logged: dict[str, Any] = {}
    for row in run.wandb_records("history"):
        logged |= row["item"]

    for name in ("eval/video_best", "eval/video_median", "eval/video_worst", "eval/final/video_worst"):
        assert logged[f"{name}._type"] == "video-file"
        with av.open(str(run.wandb_folder() / "files" / logged[f"{name}.path"])) as container:
            assert container.streams.video[0].frames > 10
    assert sum(logged["eval/length_distribution.values"]) == 3
    assert sum(logged["eval/final/return_distribution.values"]) == 2


def tracker_of(run_dir: Path) -> RunTracker:
    return RunTracker(run_dir, "run", WandbConfig(), LoggingConfig())


def test_films_go_where_the_config_says_and_one_that_fails_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    films, run_dir = tmp_path / "films", tmp_path / "a run"
    tracker = tracker_of(run_dir)
    config = EvaluationConfig(record_path=str(films), workers=1)
    logger = EpisodeLogger(EpisodeLoggerConfig(), tracker)
    beats: list[str] = []
    loop = ClosedLoop(config, "cubes", Accelerator(cpu=True), run_dir, logger, beats.append)
    (films / "a run").mkdir(parents=True)
    (films / "a run" / "final_step_00000005").write_text("in the way")

    try:
        actor = ChunkExecutor(cubes_policy(), execute=4)
        selection = loop.run(actor, "selection", 1, "step 5", step=5)
        final = loop.run(actor, "final", 1, "step 5", step=5)
    finally:
        loop.close()
        tracker.finish()

    (film,) = films.rglob("*.mp4")
    assert film.parent == films / "a run" / "step_00000005" and film.name.startswith("best_episode_000")
    assert [report.outcomes[0].video for report in (selection, final)] == [str(film), None]
    assert final.metrics()["eval/episode_length"] == 200
    assert beats.count("a piece of an episode") >= 2 * 200 / 4  # what a watch over hangs is to know
    assert beats.count("a film") == 2
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("atlas") and r.levelname == "WARNING"]
    assert len(warnings) == 1 and "final_step_00000005" in warnings[0]
    assert {"eval/length_distribution", "eval/final/length_distribution"} <= {*board_of(run_dir).Tags()["histograms"]}
    assert not (run_dir / "videos").exists()


def cubes_policy() -> ModularPolicy:
    """One that holds still, near enough, until time is up."""
    return make_policy("keypoints").eval()


@pytest.mark.parametrize(("interval", "expected"), [(1, "yyyyy"), (2, "ynyny"), (3, "ynnyn"), (0, "nnnnn")])
def test_the_interval_counts_evaluations_and_begins_with_the_first(
    tmp_path: Path, interval: int, expected: str
) -> None:
    tracker = tracker_of(tmp_path)
    logger = EpisodeLogger(EpisodeLoggerConfig(interval=interval), tracker)

    shown = "".join("yn"[not logger.due("selection")] for _ in expected)

    assert shown == expected
    assert logger.due("final") == (interval > 0)
    tracker.finish()


def test_what_was_not_filmed_is_left_out(tmp_path: Path) -> None:
    tracker = tracker_of(tmp_path)
    outcomes = tuple(EpisodeOutcome("go", seed, True, reward=0.25 * seed, length=10 * seed) for seed in (1, 2, 3))

    EpisodeLogger(EpisodeLoggerConfig(), tracker).log(EvaluationReport("cubes", "x", outcomes, "selection", step=40))
    tracker.finish()

    board = board_of(tmp_path)
    (returns,) = board.Histograms("eval/return_distribution")
    value = returns.histogram_value
    assert (returns.step, value.min, value.max, value.sum) == (40, 0.25, 0.75, 1.5)
    assert board.Tags()["images"] == []


def evaluate(run: Finished, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        "eval",
        "--checkpoint",
        str(run.run_dir),
        "--env",
        "cubes",
        "--episodes",
        "1",
        "--execute",
        "8",
        "--blind",
    ]
    return warm.atlas(*command, "--json", "--out", str(out), check=False)


def test_the_command_line_writes_outcomes_too(run: Finished, tmp_path: Path) -> None:
    done = evaluate(run, tmp_path / "a folder" / "outcomes.json")

    assert done.returncode == 0, done.stderr
    report = EvaluationReport.load(tmp_path / "a folder" / "outcomes.json")
    assert report.to_dict() == json.loads(done.stdout)
    assert (report.purpose, report.seed, report.probes, len(report.outcomes)) == ("report", 0, ("blind",), 1)


def test_a_folder_in_place_of_the_file_is_refused_before_anything_runs(run: Finished, tmp_path: Path) -> None:
    done = evaluate(run, tmp_path)

    assert done.returncode == 2 and f"--out {tmp_path} is a folder" in done.stderr and "evaluating" not in done.stderr
