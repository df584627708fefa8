"""Checks of actions that say where joints shall go: delay, unit and direction, and the gripper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.checks.recording_agreement import check_gripper, check_lag, check_scale
from atlas.data.episode import Numbers
from atlas.data.lerobot import LeRobotDataset
from atlas.viewer.episode_film import write_film
from atlas.viewer.episode_timeline import make_timeline
from tests.conftest import MakeOnce
from tests.data.test_frame_instructions import CHANGE, TASKS, changing
from tests.robots import ROBOTS, write_robot

Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ChangedEpisode:
    actions: np.ndarray
    proprio: np.ndarray


class Changed(LeRobotDataset):
    """A recording with a fault in its numbers."""

    def __init__(self, path: Path, change: Change) -> None:
        super().__init__(path)
        self._change = change

    def episode(self, index: int):  # type: ignore[no-untyped-def, override]
        found = super().episode(index)
        return ChangedEpisode(*self._change(np.array(found.actions), np.array(found.proprio)))

    def numbers(self) -> Numbers:
        raise AssertionError("checks look at episodes")


@pytest.fixture(params=["so100", "aloha"])
def robot(request: pytest.FixtureRequest, make_once: MakeOnce) -> Path:
    name = request.param
    return make_once(f"robot_{name}", lambda folder: write_robot(folder, ROBOTS[name]))


def found(path: Path, change: Change) -> list[Finding]:
    context = CheckContext(Changed(path, change), ["front"], np.arange(4), np.array([4]))
    return [f for check in (check_gripper, check_lag, check_scale) for f in check(context)]


def errors(path: Path, change: Change) -> dict[str, str]:
    return {finding.check: finding.message for finding in found(path, change) if finding.severity != "info"}


def test_nothing_is_wrong_with_a_good_recording(robot: Path) -> None:
    findings = found(robot, lambda actions, proprio: (actions, proprio))

    assert [finding.severity for finding in findings] == ["info"] * len(findings)
    assert {finding.check for finding in findings} == {"gripper", "lag", "scale"}


def test_late_actions_are_told(robot: Path) -> None:
    said = errors(robot, lambda actions, proprio: (actions[:-2], proprio[2:]))

    assert "explained by the action at t + 2" in said["lag"] and "2 frames too late" in said["lag"]


def test_a_robot_that_answers_late_is_none_of_them(robot: Path) -> None:
    findings = found(robot, lambda actions, proprio: (actions[2:], proprio[:-2]))

    lags = [finding for finding in findings if finding.check == "lag"]
    assert {f.severity for f in lags} == {"info"} and all("2 frames later, as robots may" in f.message for f in lags)


def test_actions_that_are_the_state_are_a_frame_late(robot: Path) -> None:
    said = errors(robot, lambda actions, proprio: (proprio, proprio))

    assert "1 frame too late" in said["lag"]


def test_a_state_in_another_unit_is_told(robot: Path) -> None:
    said = errors(robot, lambda actions, proprio: (actions, np.rad2deg(proprio)))

    assert "(degrees and radians)" in said["scale"]


def test_a_joint_that_is_mirrored_is_told(robot: Path) -> None:
    def mirrored(actions: np.ndarray, proprio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return actions, np.concatenate([-proprio[:, :1], proprio[:, 1:]], axis=1)

    said = errors(robot, mirrored)

    assert "the other way" in said["scale"] and ("shoulder_pan" in said["scale"] or "waist" in said["scale"])


def test_a_gripper_of_the_wrong_sign_is_told(robot: Path) -> None:
    def flipped(actions: np.ndarray, proprio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = 5 if actions.shape[1] == 6 else 6
        low, high = actions[:, place].min(), actions[:, place].max()
        actions[:, place] = low + high - actions[:, place]
        return actions, proprio

    assert "sign is flipped" in errors(robot, flipped)["gripper"]


def test_an_episode_is_shown_with_the_instruction_of_each_frame(make_once: MakeOnce, tmp_path: Path) -> None:
    import shutil

    made = make_once("robot_so100", lambda folder: write_robot(folder, ROBOTS["so100"]))
    dataset = LeRobotDataset(changing(Path(shutil.copytree(made, tmp_path / "set"))))

    timeline = make_timeline(dataset, 0)
    write_film(tmp_path / "film.mp4", timeline)

    assert timeline.changes == [(0, TASKS[0]), (CHANGE, TASKS[1])]
    assert [curve.unit for curve in timeline.proprio] == ["%"] * 5 + ["share closed"]  # called as the actions are
    assert [curve.unit for curve in timeline.actions] == ["%"] * 5 + ["share closed"]
    assert (tmp_path / "film.mp4").stat().st_size > 1000
