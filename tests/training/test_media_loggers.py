"""When the kinds of media are logged, on one process and on two, in both sinks; and that training does not notice."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import atlas
from atlas.checkpoints.contents import load_rank_states
from atlas.config import load_config
from atlas.training.media.loggers import due_at_validation, fit_intervals
from tests import warm
from tests.conftest import MakeLibero
from tests.data.test_feature_cache import fill, make_config
from tests.test_vertical_slice import SMALL
from tests.tracking.tracked_run import Finished

KINDS = ("gradient_logger", "plot_logger", "action_logger", "vis_dataset")
MEDIA = [
    "logging.media.gradient_logger.interval=2",
    "logging.media.plot_logger={interval: 3, samples: 3, worst: 5}",
    "logging.media.action_logger.interval=100",
    "logging.media.vis_dataset={interval: 3, frames: 25}",
]
RUN = [*SMALL, "training.max_steps=6", "training.val_interval=2", "training.log_interval=2", "evaluation.episodes=0"]


def all_media(interval: int) -> list[str]:
    return [f"logging.media.{kind}.interval={interval}" for kind in KINDS]


def train(data: Path, out: Path, *overrides: str) -> Path:
    result = atlas.train(None, [*RUN, f"data.path={data}", f"output_dir={out}", "run_name=run", *overrides])  # type: ignore[operator]
    return Path(result.run_dir)


class Board:
    """What a run's TensorBoard files hold."""

    def __init__(self, run_dir: Path) -> None:
        everything = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
        self._events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance=everything)
        self._events.Reload()
        self.tags: dict[str, list[str]] = self._events.Tags()

    def images(self, tag: str) -> dict[int, np.ndarray]:
        return {event.step: decode(event.encoded_image_string) for event in self._events.Images(tag)}

    def histogram(self, tag: str) -> tuple[list[int], Any]:
        """The steps, and the last value."""
        events = self._events.Histograms(tag)
        return [event.step for event in events], events[-1].histogram_value

    def table(self, tag: str) -> dict[int, list[list[str]]]:
        """{step: rows of cells}, without the head."""
        texts = {e.step: e.tensor_proto.string_val[0].decode() for e in self._events.Tensors(f"{tag}/text_summary")}
        return {
            step: [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[2:]]
            for step, text in texts.items()
        }


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.fixture(scope="module")
def one(cubes_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Board:
    """Six steps on one process."""
    return Board(train(cubes_dataset, tmp_path_factory.mktemp("one"), *MEDIA))


@pytest.fixture(scope="module")
def two(cubes_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same six steps on two processes with half the batch each, and wandb, offline."""
    out, home = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("home")
    names = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    variables = {name: str(home / name) for name in names} | {"HOME": str(home), "NETRC": str(home / ".netrc")}
    settings = [*RUN, *MEDIA, "data.batch_size=4", "wandb.enabled=true", "wandb.mode=offline"]
    places = [f"data.path={cubes_dataset}", f"output_dir={out}", "run_name=run"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = ["train", "--cpu", "--mode", "multi", "--gpus", "2", *settings, *places]
    done = warm.atlas(*command, check=False, env=kept | variables)
    return Finished(done.returncode, done.stdout, done.stderr, out / "run", home)


# ---- when --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "val_interval", "last", "expected"),
    [
        (1000, 500, 4000, [1000, 2000, 3000, 4000]),
        (1300, 500, 4000, [1500, 3000, 4000]),  # the first validation at or after 1300, 2600 and 3900
        (300, 500, 1000, [500, 1000]),  # more often than there are validations: at each
        (400, 500, 450, [450]),  # the validation at the end counts
        (0, 500, 1000, []),
    ],
)
def test_what_needs_a_validation_waits_for_the_next_one(
    interval: int, val_interval: int, last: int, expected: list[int]
) -> None:
    validations = sorted({*range(val_interval, last + 1, val_interval), last})
    assert [step for step in validations if due_at_validation(interval, step, val_interval)] == expected


def test_every_kind_is_due_three_times_or_more_in_the_default_job() -> None:
    config = load_config()
    assert config.training.max_steps is not None
    last, validation = config.training.max_steps, config.training.val_interval
    fitted = fit_intervals(config.logging.media, last)

    assert last // fitted["gradient_logger"] >= 3
    for kind in KINDS[1:]:
        assert sum(due_at_validation(fitted[kind], step, validation) for step in range(1, last + 1)) >= 3


def test_an_interval_longer_than_the_run_is_shortened_and_one_of_zero_stays_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    media = load_config(None, ["logging.media.plot_logger.interval=0"]).logging.media
    with caplog.at_level("INFO"):
        fitted = fit_intervals(media, 20)
    assert fitted == {"gradient_logger": 20, "plot_logger": 0, "action_logger": 20, "vis_dataset": 20}
    assert "action_logger.interval 500 -> 20" in caplog.text and "plot_logger" not in caplog.text


def test_after_a_resume_the_pattern_goes_on(cubes_dataset: Path, tmp_path: Path) -> None:
    """With an interval of 3 and validations at 2, 4, 6, 8: at 4 for 3, at 6 for 6, and nothing at 8."""
    run_dir = train(cubes_dataset, tmp_path, *MEDIA, "training.max_steps=4")
    atlas.train(None, ["training.max_steps=8"], resume=run_dir)  # type: ignore[operator]

    board = Board(run_dir)
    assert list(board.images("plots/chunks")) == [4, 6]
    assert board.histogram("gradients/head/pose")[0] == [2, 4, 6, 8]


# ---- what --------------------------------------------------------------------------------------------------


def test_the_board_has_every_kind_at_its_steps(one: Board) -> None:
    pictures = {tag: list(one.images(tag)) for tag in one.tags["images"]}
    expected = {"plots/chunks": [4, 6], "actions/distributions": [6], "actions/gripper": [6]}
    expected |= {f"plots/views/{number}": [4, 6] for number in (1, 2, 3)}
    expected |= {f"dataset/frames_by_{what}": [4, 6] for what in ("task", "success")}
    assert {tag: pictures.get(tag) for tag in expected} == expected

    for kind in ("gradients", "weights"):
        for module in ("vision/stems", "fusion/layers", "head/pose", "head/gripper", "language/layers"):
            assert one.histogram(f"{kind}/{module}")[0] == [2, 4, 6]
    assert {"gradients/vision/norm", "gradients/head/pose/norm"} <= set(one.tags["scalars"])
    for name in ("dx", "dz", "rx", "gripper"):
        assert one.histogram(f"actions/{name}/predicted")[0] == [6]
    worst = one.table("plots/worst_samples")
    assert list(worst) == [4, 6] and all(len(rows) == 5 for rows in worst.values())
    errors = [float(row[3]) for row in worst[6]]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0
    assert all(row[2].startswith("pick up the") for row in worst[6])


def test_the_same_samples_are_drawn_each_time(one: Board) -> None:
    """Their camera pictures stay as they are, while the predicted motion moves."""
    early, late = one.images("plots/views/2").values()
    wrist = np.s_[44:284, 256:496]  # the second camera's tile, in which nothing is drawn
    np.testing.assert_array_equal(early[wrist], late[wrist])
    assert (early != late).any()


def test_both_processes_look_at_their_share_and_the_main_one_shows_all(one: Board, two: Finished) -> None:
    assert two.code == 0 and two.warnings == [], two.stderr
    board = Board(two.run_dir)

    assert set(board.tags["images"]) == set(one.tags["images"])
    assert set(board.tags["histograms"]) == set(one.tags["histograms"])
    for step, rows in one.table("plots/worst_samples").items():
        theirs = board.table("plots/worst_samples")[step]
        assert [row[:3] for row in theirs] == [row[:3] for row in rows]
        np.testing.assert_allclose([float(r[3]) for r in theirs], [float(r[3]) for r in rows], atol=2e-3)
    for tag in ("actions/dx/recorded", "actions/gripper/predicted", "gradients/head/pose"):
        ours, theirs = one.histogram(tag)[1], board.histogram(tag)[1]
        assert ours.num == theirs.num
        np.testing.assert_allclose([ours.min, ours.max, ours.sum], [theirs.min, theirs.max, theirs.sum], rtol=1e-2)
    assert len(np.loadtxt(next((two.run_dir / "tensorboard").rglob("00000006/tensors.tsv")))) == 25


def test_wandb_has_what_the_board_has(two: Finished) -> None:
    pytest.importorskip("wandb")
    board = Board(two.run_dir)
    logged: dict[str, list[int]] = {}
    for row in two.wandb_records("history"):
        for name in row["item"]:
            logged.setdefault(name.removesuffix("._type"), []).append(int(row["item"]["train/step"]))

    def steps(name: str) -> list[int]:
        found = [steps for key, steps in logged.items() if key == name or key.startswith((f"{name}.", f"{name}/"))]
        assert found, name
        return sorted(set(found[0]))

    for tag in board.tags["images"]:
        assert steps(tag) == list(board.images(tag)), tag
    for tag in ("gradients/head/pose", "weights/vision/stems", "actions/dx/recorded"):
        assert steps(tag) == board.histogram(tag)[0], tag
    assert steps("plots/worst_samples") == [4, 6]
    assert steps("gradients/vision/norm") == [2, 4, 6]


def test_a_data_set_without_calibrated_cameras_is_drawn_from_above_and_from_the_side(
    make_libero: MakeLibero, tmp_path: Path
) -> None:
    board = Board(train(make_libero(), tmp_path, *MEDIA, "data.val_fraction=0.3"))
    picture = board.images("plots/views/1")[6]
    assert picture.shape[:2] == (44 + 240 + 20, 8 + 4 * 248)  # two cameras and two planes


def test_cached_features_are_mapped_without_reading_images(make_libero: MakeLibero, tmp_path: Path) -> None:
    config = make_config(make_libero(), "data.val_fraction=0.3")
    fill(config, tmp_path / "cache")
    cached = [*RUN[len(SMALL) :], f"data.feature_cache={tmp_path / 'cache'}", f"output_dir={tmp_path}", "run_name=run"]

    atlas.train(load_config(config, [*cached, *MEDIA]))  # type: ignore[operator]

    board = Board(tmp_path / "run")
    assert list(board.images("dataset/frames_by_task")) == [4, 6]
    projected = next((tmp_path / "run" / "tensorboard").rglob("00000006/tensors.tsv"))
    assert np.loadtxt(projected).shape == (25, 25)  # as many components as frames, of 96 dimensions
    assert not (projected.parent / "sprite.png").exists()
    assert list(board.images("plots/views/1")) == [4, 6]  # the dataset still has the pictures


# ---- and training does not notice ----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["0", "0.9"])
def test_media_change_no_weight_and_no_random_number(cubes_dataset: Path, tmp_path: Path, decay: str) -> None:
    """With dropout, whose numbers come from the generator that everything else could have drawn from."""
    settings = [f"training.ema_decay={decay}", "model.fusion.dropout=0.2"]
    on = train(cubes_dataset, tmp_path / "on", *settings, *all_media(1))
    off = train(cubes_dataset, tmp_path / "off", *settings, *all_media(0))

    assert "plots/chunks" in Board(on).tags["images"] and not Board(off).tags["images"]
    ours, theirs = (load_file(run / "checkpoints" / "latest" / "policy" / "model.safetensors") for run in (on, off))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()
    random = [load_rank_states(run / "checkpoints" / "latest")[0]["random"] for run in (on, off)]
    assert torch.equal(random[0]["torch"], random[1]["torch"])
    assert random[0]["python"] == random[1]["python"]
    assert torch.equal(random[0]["numpy"][1], random[1]["numpy"][1])


def test_a_kind_that_fails_is_switched_off_with_one_warning(
    cubes_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no paint left\nand no brush")

    monkeypatch.setattr("atlas.drawing.prediction_plots.draw_chunks", broken)

    run_dir = train(cubes_dataset, tmp_path, *all_media(2))

    log = (run_dir / "train.log").read_text()
    warning = "logging.media.plot_logger is switched off: RuntimeError: no paint left. Training goes on."
    assert log.count(warning) == 1 and "Traceback" not in log
    board = Board(run_dir)
    assert "plots/chunks" not in board.tags["images"]
    assert list(board.images("actions/distributions")) == [2, 4, 6]
    assert (run_dir / "checkpoints" / "step_00000006").exists()


def test_a_kind_that_fails_on_another_process_is_switched_off_here_too(
    cubes_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That process still sends its part, which is nothing, so that nobody waits for it; and it has said why."""
    monkeypatch.setattr("atlas.training.media.loggers.gather_object", lambda parts: [*parts, None])

    run_dir = train(cubes_dataset, tmp_path, *all_media(2))

    board = Board(run_dir)
    assert not board.tags["images"] and board.histogram("gradients/head/pose")[0] == [2, 4, 6]
    assert "switched off" not in (run_dir / "train.log").read_text()
