"""A world of another package, which is no simulator, evaluated and filmed by `atlas eval`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeLibero
from tests.policies.test_policy import make_policy
from tests.rollout.bench_world import HORIZON, INSTRUCTIONS, SOLVED_AT
from tests.rollout.test_films import read_film


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "bench-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[atlas.environments]\nbench = tests.rollout.bench_world:WORLD\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def test_a_world_that_is_no_simulator_is_evaluated_and_filmed(
    tmp_path: Path, atlas: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    make_policy("keypoints").eval().save_pretrained(tmp_path / "policy")
    films = tmp_path / "films"
    flags = ["--episodes", "2", "--workers", "1", "--execute", "3", "--video", str(films), "--json"]

    assert atlas("eval", "--checkpoint", str(tmp_path / "policy"), "--env", "bench", *flags) == 0

    found = json.loads(capfd.readouterr().out)
    assert (found["env"], found["episodes"], found["successes"]) == ("bench", 2, 1)
    assert found["per_instruction"][INSTRUCTIONS[0]]["success_rate"] == 1.0
    assert found["mean_episode_length"] == (SOLVED_AT + HORIZON) / 2
    lengths = {"000_press_the_left_button_success": SOLVED_AT, "001_press_the_right_button_failure": HORIZON}
    for name, steps in lengths.items():
        frames, fps = read_film(films / f"episode_{name}.mp4")
        assert fps == 20 and len(frames) == steps + 16
        brightness = [frame[60:200, 60:200].mean() for frame in frames[: steps + 1]]  # within the picture
        assert brightness == pytest.approx([20 * step for step in range(steps + 1)], abs=8)


def test_recorded_actions_need_a_simulator(
    atlas: Callable[..., int], make_libero: MakeLibero, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded = make_libero({INSTRUCTIONS[0]: [6]})

    assert atlas("eval", "--open-loop", str(recorded), "--env", "bench") == 2

    assert "'bench' is no simulator: it cannot be put into a recorded state" in capfd.readouterr().err
