"""The trace of `training.profile`, opened as Perfetto and TensorBoard open it."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.config import ProfileConfig
from atlas.training.perf.profiling import StepProfiler
from atlas.training.perf.timing import StepTimer
from tests.policies.test_policy import make_batch, make_policy

PARTS = ("data", "forward", "backward", "optimizer")
# Of TensorBoard's plugin (torch_tb_profiler.consts): how it finds its files, and whose they are.
PLUGIN_FILES = re.compile(r"^(.*?)(\.\d+)?\.pt\.trace\.json(?:\.gz)?$")


class Loop:
    """The parts of a training loop that are seen in a trace."""

    def __init__(self, config: ProfileConfig | None, run_dir: Path, rank: int = 0, step: int = 0) -> None:
        self.timer = StepTimer()
        self.profiler = StepProfiler(config, run_dir, self.timer, rank, step)
        self._policy = make_policy()
        self._optimizer = torch.optim.AdamW(self._policy.parameters())

    def run(self, steps: int) -> Loop:
        for _ in range(steps):
            with self.timer.part("data"):
                batch = make_batch()
            with self.timer.part("forward"):
                loss = self._policy(batch).loss
            with self.timer.part("backward"):
                loss.backward()
            with self.timer.part("optimizer"):
                self._optimizer.step()
            self.profiler.step()
        return self


def read_trace(file: Path) -> list[dict[str, Any]]:
    assert PLUGIN_FILES.match(file.name)
    with gzip.open(file, "rt") as text:
        events: list[dict[str, Any]] = json.load(text)["traceEvents"]
    return [event for event in events if event.get("ph") == "X"]  # whole ranges, with a start and a length


@pytest.mark.parametrize("start", [0, 2])
def test_a_trace_shows_the_parts_of_its_steps_and_the_operators_in_them(start: int, tmp_path: Path) -> None:
    Loop(ProfileConfig(start=start, steps=2), tmp_path, rank=1, step=10).run(start + 4).profiler.close()

    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == f"rank1_step{10 + start}.pt.trace.json.gz"
    events = read_trace(file)
    for part in PARTS:
        assert len([e for e in events if e["name"] == f"atlas.{part}"]) == 2
    forward = next(e for e in events if e["name"] == "atlas.forward")
    inside = {
        e["name"] for e in events if forward["ts"] <= e["ts"] and e["ts"] + e["dur"] <= forward["ts"] + forward["dur"]
    }
    assert {"aten::linear", "aten::convolution"} <= inside
    assert any("AddmmBackward" in e["name"] for e in events)


def test_each_rank_has_a_file_and_a_resumed_run_another(tmp_path: Path) -> None:
    for rank, step in ((0, 0), (1, 0), (0, 7)):
        Loop(ProfileConfig(start=1, steps=1), tmp_path, rank, step).run(2).profiler.close()

    names = sorted(file.name.split(".")[0] for file in (tmp_path / "profile").iterdir())
    assert names == ["rank0_step1", "rank0_step8", "rank1_step1"]


def test_a_training_that_ends_early_leaves_what_was_traced(tmp_path: Path) -> None:
    Loop(ProfileConfig(start=1, steps=9), tmp_path).run(3).profiler.close()

    (file,) = (tmp_path / "profile").iterdir()
    assert len([e for e in read_trace(file) if e["name"] == "atlas.backward"]) == 2


@pytest.mark.parametrize("config", [None, ProfileConfig(start=5, steps=1)])
def test_other_steps_are_not_traced(config: ProfileConfig | None, tmp_path: Path) -> None:
    loop = Loop(config, tmp_path)

    loop.run(3)

    assert not loop.timer.traced and not torch.autograd.profiler._is_profiler_enabled
    loop.profiler.close()
    assert not (tmp_path / "profile").exists()


def test_tracing_ends_with_the_last_step(tmp_path: Path) -> None:
    loop = Loop(ProfileConfig(start=1, steps=1), tmp_path).run(1)
    assert loop.timer.traced

    loop.run(1)

    assert not loop.timer.traced and not torch.autograd.profiler._is_profiler_enabled
    assert len(list((tmp_path / "profile").iterdir())) == 1


def test_a_trace_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("a file in the folder's place")

    Loop(ProfileConfig(start=0, steps=1), tmp_path).run(2).profiler.close()

    assert "profile/rank0_step0.pt.trace.json.gz could not be written" in caplog.text


def test_the_timer_times_the_parts_traced_or_not() -> None:
    timer = StepTimer()
    for traced in (False, True):
        timer.traced = traced
        with timer.part("forward"):
            torch.zeros(1)
        timer.step_done()

        assert timer.read(8)["timer/forward"] > 0
