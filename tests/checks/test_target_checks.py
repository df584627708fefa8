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
from atlas.data.lerobot.dataset import LeRobotDataset
from atlas.data.motion import MotionFit
from atlas.types import ActionGroup, ActionSpec
from atlas.viewer.episode_film import write_film
from atlas.viewer.episode_timeline import make_timeline
from tests.action_spaces import MadeUpDataset, MadeUpEpisode
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


# ---- deltas that an arm lags behind ----------------------------------------------------------------------


class LaggingArm(MadeUpDataset):
    """As Meta-World's: each command moves the target on, which the hand is behind for dozens of frames; the last number
    of the state is how far the gripper is open, which the last command closes."""

    environment = "made-up"

    def __init__(self, change: Change = lambda actions, proprio: (actions, proprio)) -> None:
        unit = ActionGroup("position", ("dx", "dy", "dz"), unit=0.01, delta=True)
        super().__init__(ActionSpec((unit, ActionGroup("gripper", ("gripper",), continuous=True)), 80.0))
        self.lengths, self._change = np.full(5, 120), change

    def episode(self, index: int) -> MadeUpEpisode:
        rng, steps = np.random.default_rng(index), int(self.lengths[index])
        goals, noise = rng.uniform(-0.15, 0.15, (3, 3)), np.zeros(3)
        hand, target, speed = np.zeros(3), np.zeros(3), np.zeros(3)
        actions, proprio = np.zeros((steps, 4)), np.ones((steps, 4))
        for step in range(steps):
            noise = 0.8 * noise + 0.12 * rng.standard_normal(3)
            actions[step, :3] = np.clip(100 * (goals[step // 40] - hand) + noise, -1, 1)
            actions[step, 3] = 1.0 if step % 40 > 25 else -1.0
            proprio[step] = [*hand, max(0.0, 1.0 - 0.2 * max(0, step % 40 - 25))]
            target = target + 0.01 * actions[step, :3]
            speed = 0.5 * speed + 0.15 * (target - hand)
            hand = hand + speed
        return MadeUpEpisode(self.tasks[self.task_of[index]], *self._change(actions, proprio))


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (lambda actions, proprio: (actions, proprio), "", ""),
        (lambda actions, proprio: (actions[:-2], proprio[2:]), "lag", "2 frames too late"),
        (lambda actions, proprio: (actions[3:], proprio[:-3]), "lag", "begins to move 3 frames after the action"),
        (lambda actions, proprio: (actions * 0.2, proprio), "scale", "4.9"),
        (lambda actions, proprio: (actions * [-1, 1, 1, 1], proprio), "scale", "-dx moves x"),
        (lambda actions, proprio: (actions[:, [1, 0, 2, 3]], proprio), "scale", "dy moves x, dx moves y"),
    ],
    ids=["as it is", "late", "early", "another unit", "a flipped axis", "swapped axes"],
)
def test_an_arm_that_lags_is_no_fault_and_hides_none(change: Change, check: str, words: str) -> None:
    context = CheckContext(LaggingArm(change), ["front"], np.arange(4), np.array([4]))  # type: ignore[arg-type]
    findings = [f for each in (check_gripper, check_lag, check_scale) for f in each(context)]

    wrong = [finding for finding in findings if finding.severity != "info"]
    assert [finding.check for finding in wrong] == ([check] if check else [])
    assert all(words in finding.message for finding in wrong)
    motion = context.motion
    assert motion is not None and (check or motion.tail)
    assert MotionFit.from_dict(motion.to_dict()).tail == motion.tail
