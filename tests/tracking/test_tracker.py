"""The tracker, TensorBoard files read back, the console and the log file."""

from __future__ import annotations

import io
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import atlas
from atlas.config import LoggingConfig, WandbConfig
from atlas.runs import read_scalars
from atlas.tracking import Resumed, RunTracker, board
from atlas.tracking.machine_load import gpu_sample
from atlas.tracking.media_values import write_mp4
from atlas.tracking.records import Record, Scalars, Sink
from atlas.tracking.sinks.console import format_line, setup_logging
from atlas.tracking.sinks.queued import QueuedSink


def make(run_dir: Path, *sinks: Sink, is_main: bool = True, resume_step: int | None = None) -> RunTracker:
    resumed = None if resume_step is None else Resumed(resume_step)
    quiet = LoggingConfig(system_interval_seconds=0)
    return RunTracker(run_dir, "run", WandbConfig(), quiet, is_main, resumed, extra_sinks=sinks)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def events_of(run_dir: Path, kind: str) -> dict[str, list]:  # type: ignore[type-arg]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    read = {"images": events.Images, "histograms": events.Histograms, "tensors": events.Tensors}[kind]
    return {tag: read(tag) for tag in events.Tags()[kind]}


def test_metrics_are_logged_as_given_at_the_trainers_step(tmp_path: Path) -> None:
    tracker = make(tmp_path)
    tracker.step = 10
    tracker.log({"train/loss": torch.tensor(0.5, dtype=torch.bfloat16), "custom/metric": np.float32(3)})
    tracker.log({"custom/metric": 4, "train/bad": float("nan")}, step=12)
    tracker.finish()
    scalars = read_scalars(tmp_path)
    assert scalars["train/loss"] == [(10, 0.5)]
    assert scalars["custom/metric"] == [(10, 3.0), (12, 4.0)]
    assert math.isnan(scalars["train/bad"][0][1])


def test_a_value_that_is_not_a_number_is_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = make(tmp_path)
    for step in (1, 2):
        tracker.log({"train/loss": 1.0, "custom/words": "seven", "custom/many": torch.zeros(3)}, step=step)
    tracker.finish()
    assert set(read_scalars(tmp_path)) == {"train/loss"}
    assert len(warnings_of(caplog)) == 2
    assert "custom/words" in warnings_of(caplog)[0] and "custom/many" in warnings_of(caplog)[1]


def test_a_resumed_run_drops_what_was_logged_beyond_its_checkpoint(tmp_path: Path) -> None:
    first = make(tmp_path)
    for step in (10, 20, 30):
        first.log({"train/loss": float(step)}, step=step)
    first.finish()
    second = make(tmp_path, resume_step=20)
    assert second.step == 20
    second.log({"train/loss": -30.0}, step=30)
    second.finish()
    assert read_scalars(tmp_path)["train/loss"] == [(10, 10.0), (20, 20.0), (30, -30.0)]


def test_all_scalars_are_read_back(tmp_path: Path) -> None:
    tracker = make(tmp_path)
    for step in range(11_000):  # more than the event reader keeps by default
        tracker.log({"custom/x": step}, step=step)
    tracker.finish()
    assert len(read_scalars(tmp_path)["custom/x"]) == 11_000
    assert read_scalars(tmp_path / "elsewhere") == {}


def test_media_reach_tensorboard(tmp_path: Path) -> None:
    class Figure:
        def savefig(self, file: io.BytesIO, format: str) -> None:
            PILImage.new("RGBA", (5, 4), "red").save(file, format)

    frames = np.zeros((30, 33, 47, 3), np.uint8)
    frames[15:, :, :, 0] = 255
    write_mp4(tmp_path / "mine.mp4", frames, fps=20)
    tracker = make(tmp_path)
    tracker.step = 3
    tracker.log_image("eval/image", torch.zeros(6, 7, 3, dtype=torch.uint8))
    tracker.log_figure("eval/figure", Figure())
    tracker.log_figure("eval/picture", PILImage.new("L", (9, 8)))
    tracker.log_video("eval/frames", frames, fps=20)
    tracker.log_video("eval/file", tmp_path / "mine.mp4")
    tracker.log_histogram("train/values", torch.tensor([1.0, math.nan, 3.0], dtype=torch.bfloat16))
    tracker.log_table("eval/table", ["task", "rate"], [["a|b", 0.5], ["c", None]])
    tracker.log_config({"data": {"path": "x"}})
    tracker.finish()

    images = events_of(tmp_path, "images")
    sizes = {tag: (events[0].height, events[0].width) for tag, events in images.items()}
    assert sizes["eval/image"] == (6, 7) and sizes["eval/figure"] == (4, 5) and sizes["eval/picture"] == (8, 9)
    for tag in ("eval/frames", "eval/file"):
        with PILImage.open(io.BytesIO(images[tag][0].encoded_image_string)) as gif:
            assert gif.format == "GIF" and getattr(gif, "is_animated", False)
            gif.seek(getattr(gif, "n_frames", 1) - 1)
            red, green, _ = gif.convert("RGB").getpixel((10, 10))  # type: ignore[misc]
            assert red > 200 and green < 50
    assert (tmp_path / "videos" / "eval-frames_step_00000003.mp4").is_file()
    histogram = events_of(tmp_path, "histograms")["train/values"][0].histogram_value
    assert (histogram.num, histogram.min, histogram.max) == (2, 1.0, 3.0)
    texts = {
        tag: events[0].tensor_proto.string_val[0].decode()
        for tag, events in events_of(tmp_path, "tensors").items()
        if tag.endswith("text_summary")
    }
    assert "path: x" in texts["config/text_summary"]
    assert "a\\|b" in texts["eval/table/text_summary"]


def test_media_that_cannot_be_shown_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = make(tmp_path)
    for _ in range(2):
        tracker.log_image("float", np.zeros((4, 4, 3)))
        tracker.log_video("absent", tmp_path / "absent.mp4")
        tracker.log_histogram("empty", [math.nan])
        tracker.log_table("ragged", ["a"], [[1, 2]])
        tracker.log_figure("words", "words")
        tracker.log_model(tmp_path / "absent", "model")
    tracker.log({"train/loss": 1.0})
    tracker.finish()
    assert len(warnings_of(caplog)) == 6
    assert set(read_scalars(tmp_path)) == {"train/loss"}


def test_without_wandb_the_place_of_a_model_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="atlas")
    tracker = make(tmp_path)
    tracker.log_model(tmp_path, "policy", ["best"], step=7)
    tracker.finish()
    assert f"model policy (best) at step 7: {tmp_path}" in caplog.text


class Broken(Sink):
    name = "broken"

    def __init__(self) -> None:
        self.calls = 0

    def write(self, record: Record) -> None:
        self.calls += 1
        raise RuntimeError("no space left on device")

    def finish(self, exit_code: int) -> None:
        raise RuntimeError("not asked any more")


class Collecting(Sink):
    name = "collecting"

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.exit_code: int | None = None

    def write(self, record: Record) -> None:
        self.records.append(record)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_a_failing_sink_is_switched_off_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, collecting = Broken(), Collecting()
    tracker = make(tmp_path, broken, collecting)
    for step in range(3):
        tracker.log({"train/loss": 1.0}, step=step)
    tracker.finish(5)
    tracker.finish(6)
    tracker.log({"train/loss": 1.0})
    assert broken.calls == 1
    assert len(collecting.records) == 3 and collecting.exit_code == 5
    (warning,) = warnings_of(caplog)
    assert "broken is switched off" in warning and "no space left on device" in warning


def test_a_tensorboard_that_cannot_open_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    collecting = Collecting()
    tracker = make(tmp_path, collecting)
    tracker.log({"train/loss": 1.0})
    tracker.finish()
    assert len(collecting.records) == 1
    (warning,) = warnings_of(caplog)
    assert "tensorboard is switched off" in warning


def test_a_slow_sink_that_raises_is_switched_off_and_closed(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(Broken):
        name = "slow"
        closed = False

        def finish(self, exit_code: int) -> None:
            self.closed = True

        def abandon(self) -> None:
            raise AssertionError("it was not late")

    slow = Slow()
    queued = QueuedSink(slow)
    for step in range(50):
        queued.write(Scalars({"x": 1.0}, step))
    queued.finish(0, time.monotonic() + 5)
    assert slow.calls == 1 and slow.closed
    (warning,) = warnings_of(caplog)
    assert "slow is switched off: RuntimeError: no space left on device" in warning


def test_a_stalled_sink_loses_what_it_has_no_room_for_and_says_how_much(caplog: pytest.LogCaptureFixture) -> None:
    class Stalled(Collecting):
        go_on = threading.Event()

        def write(self, record: Record) -> None:
            self.go_on.wait()
            super().write(record)

    stalled = Stalled()
    queued = QueuedSink(stalled, room=10)
    accepted = [queued.write(Scalars({"x": 1.0}, step)) for step in range(50)]
    stalled.go_on.set()
    queued.finish(0, time.monotonic() + 5)
    assert 10 <= sum(accepted) <= 11  # one may be in its hands
    assert len(stalled.records) == sum(accepted) and queued.dropped == 50 - sum(accepted)
    first, last = warnings_of(caplog)
    assert "collecting falls behind" in first and f"collecting dropped {queued.dropped} records" in last


def test_a_sink_that_hangs_is_left_behind_when_time_is_up(caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(Collecting):
        abandoned = False

        def write(self, record: Record) -> None:
            time.sleep(3600)

        def abandon(self) -> None:
            self.abandoned = True

    hanging = Hanging()
    queued = QueuedSink(hanging)
    queued.write(Scalars({"x": 1.0}, 0))
    start = time.monotonic()
    queued.finish(0, start + 0.2)
    assert hanging.abandoned  # and this line is reached in less than an hour
    assert "is abandoned" in warnings_of(caplog)[0]


def test_with_strict_a_wrong_value_is_an_error(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path, "run", WandbConfig(), LoggingConfig(system_interval_seconds=0), strict=True)
    with pytest.raises(TypeError, match="custom/words"):
        tracker.log({"custom/words": "seven"})
    with pytest.raises(TypeError, match="float"):
        tracker.log_image("float", np.zeros((4, 4, 3)))
    tracker.finish()


def test_the_board_is_arranged_and_has_the_settings_as_hyperparameters(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    tracker = make(tmp_path)
    tracker.log_config({"seed": 3, "training": {"learning_rate": 0.1, "num_epochs": None}, "wandb": {"project": "x"}})
    tracker.finish(1)

    layout = Layout()
    (text,) = events_of(tmp_path, "tensors")["custom_scalars__config__"]
    layout.ParseFromString(text.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for group in layout.category for chart in group.chart}
    assert charts["success rate"] == ["^eval/success_rate$"] and "position error (mm)" in charts
    assert [*board.layout(from_experience=True)] == ["1 does it work", "2 environment", "3 training", "4 is it fast"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(found["_hparams_/session_start_info"]).session_start_info
    assert {k: v.number_value or v.string_value for k, v in start.hparams.items()} == {
        "seed": 3,
        "training.learning_rate": 0.1,
        "training.num_epochs": "None",
    }
    end = HParamsPluginData.FromString(found["_hparams_/session_end_info"]).session_end_info
    assert end.status == 2  # failure


def test_the_machine_is_sampled(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path, "run", WandbConfig(), LoggingConfig(system_interval_seconds=0.05))
    for step in range(5):
        tracker.step = step
        time.sleep(0.1)
    tracker.finish()
    scalars = read_scalars(tmp_path)
    assert len(scalars["system/cpu_percent"]) >= 4
    assert 0 < scalars["system/memory_percent"][-1][1] < 100 and scalars["system/process_memory_gib"][-1][1] > 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_gpu_is_sampled() -> None:
    sample = gpu_sample()
    assert len(sample) == 4 * torch.cuda.device_count()
    assert 0 <= sample["system/gpu0_percent"] <= 100 and sample["system/gpu0_memory_gib"] > 0


def test_a_gpu_that_does_not_tell_one_thing_tells_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotSupported(Exception):
        """As the driver's library raises it."""

    def power(gpu: int) -> float:
        if gpu == 1:
            raise NotSupported
        return 350_000.0

    answers = {"utilization": 90, "device_memory_used": 2**30, "temperature": 60, "device_count": 2}
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "power_draw", power)

    sample = gpu_sample()

    assert len(sample) == 7 and sample["system/gpu0_power"] == 350.0
    assert "system/gpu1_power" not in sample and sample["system/gpu1_temperature"] == 60.0


def test_other_ranks_import_and_write_nothing(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from atlas.config import LoggingConfig, WandbConfig
from atlas.tracking import RunTracker
tracker = RunTracker(Path(sys.argv[1]), "run", WandbConfig(enabled=True), LoggingConfig(), is_main=False, wandb_id="x")
tracker.log({"train/loss": "nonsense"})
tracker.log_video("v", "nowhere")
tracker.log_config({})
tracker.log_model(Path("nowhere"), "m")
tracker.finish()
assert tracker.wandb_id == "x" and not tracker.stop_requested
print([name for name in ("torch", "wandb", "tensorboard", "av", "PIL") if name in sys.modules])
"""
    run = [sys.executable, "-c", script, str(tmp_path / "run")]
    root = str(Path(atlas.__file__).parents[1])
    done = subprocess.run(run, env={"PYTHONPATH": root}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
    assert not (tmp_path / "run").exists()


# ---- console and log file ----------------------------------------------------------------------------------


def test_a_line_shows_what_matters() -> None:
    values = {
        "train/lr": 1e-3,
        "train/loss": 0.0321,
        "train/pose_loss": 0.0297,
        "train/step": 120,
        "train/entropy_bonus": 1.5,
        "perf/samples_per_second": 812.4,
        "perf/step_seconds": 0.1,
        "timer/data": 0.01,
    }
    line = "step  120/3000  loss 0.0321  pose 0.0297  lr 1.00e-03  entropy bonus 1.5  812 samples/s"
    assert format_line(Scalars(values, 120), 3000) == line
    values = {"val/loss": 0.5, "val/position_error_mm": 12.3, "val/stack/loss": 1.0, "val/gripper_error": 0.1}
    assert format_line(Scalars(values, 500), 3000) == "step  500/3000  val  loss 0.5000  position 12.30 mm"
    values = {"eval/success_rate": 0.62, "eval/success_rate/stack the cubes": 0.5}
    assert format_line(Scalars(values, 500)) == "step    500  eval  success 0.620"
    assert format_line(Scalars({"timer/data": 0.1, "model/total_parameters": 5}, 1)) == ""


@pytest.fixture
def restored_logging() -> Iterator[logging.Logger]:
    package = logging.getLogger("atlas")
    before = (package.level, package.propagate, list(package.handlers))
    yield package
    assert (package.level, package.propagate, list(package.handlers)) == before


def test_the_main_rank_logs_to_stderr_and_a_file_that_a_resumed_run_goes_on_with(
    tmp_path: Path,
    restored_logging: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-key-0123456789")
    for word in ("first", "second"):
        undo = setup_logging(tmp_path, is_main=True)
        logging.getLogger("atlas.training").info("%s planted-key-0123456789", word)
        try:
            raise ValueError("within planted-key-0123456789")
        except ValueError:
            logging.getLogger("atlas.training").exception("failed")
        undo()
    text = (tmp_path / "train.log").read_text()
    err = capsys.readouterr().err
    assert "first ***" in text and "second ***" in text and "ERROR: failed" in text
    assert "first ***" in err
    assert "planted" not in text + err


def test_other_ranks_say_who_they_are_and_write_no_file(
    tmp_path: Path, restored_logging: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    undo = setup_logging(tmp_path, is_main=False, rank=3)
    logging.getLogger("atlas").info("quiet")
    logging.getLogger("atlas").warning("loud")
    undo()
    err = capsys.readouterr().err
    assert "[rank 3] WARNING: loud" in err and "quiet" not in err
    assert list(tmp_path.iterdir()) == []
