"""LeRobot folders of robots that people own, with LeRobot's names: joints that follow what they are told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlas.data.convert import Conversion, convert
from atlas.types import ActionGroup, ActionSpec
from tests.action_spaces import MadeUpDataset, MadeUpEpisode

SMALL_ARM = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
VIPERX = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
FOLLOWS = 0.6  # of the way to its target, a joint goes in one step


@dataclass(frozen=True)
class Robot:
    """A robot, and the values that its recordings hold."""

    type: str
    names: Sequence[str]
    reach: float  # of its joints
    gripper: tuple[float, float] = (0.0, 100.0)  # smallest and largest
    hz: float = 30.0

    @property
    def spec(self) -> ActionSpec:
        """One group of all: what the numbers mean is what a test asks Atlas."""
        return ActionSpec((ActionGroup("other", tuple(self.names)),), self.hz)


def _pos(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.pos" for name in names)


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{arm}_{name}" for arm in ("left", "right") for name in names)


_ARM = (*SMALL_ARM, "gripper")
ROBOTS = {
    "so100": Robot("so100_follower", _pos(*_ARM), 90.0),
    "so101_degrees": Robot("so101_follower", _pos(*_ARM), 150.0),
    "koch_old": Robot("koch", tuple(f"main_{name}" for name in _ARM), 80.0),
    "bi_so100": Robot("bi_so100_follower", _both(*_pos(*_ARM)), 95.0),
    "aloha": Robot("aloha", _both(*VIPERX, "gripper"), 1.5, (0.0, 1.0), 50.0),
    "droid": Robot("Franka", (*(f"joint_{i}" for i in range(7)), "gripper"), 2.5, (0.0, 1.0), 15.0),
    "lekiwi": Robot("lekiwi_client", (*(f"arm_{n}" for n in _pos(*_ARM)), "x.vel", "y.vel", "theta.vel"), 60.0),
}


class RobotDataset(MadeUpDataset):
    """Five episodes of smooth motion; the state is where the joints have come to by then."""

    path, image = Path("robot"), 64

    def __init__(self, robot: Robot, length: int = 24) -> None:
        super().__init__(robot.spec)
        self._robot, self.lengths = robot, np.array([length, length + 6, length + 3, length + 1, length + 9])

    def episode(self, index: int) -> RobotEpisode:
        robot, steps = self._robot, int(self.lengths[index])
        rng, t = np.random.default_rng(index), np.arange(steps + 1)[:, None] / robot.hz
        width = len(robot.names)
        waves = np.sin(2 * np.pi * (rng.uniform(0.8, 1.6, width) * t + rng.uniform(0, 1, width)))
        targets = robot.reach * waves * np.linspace(1, 0.6, width)
        for place, name in enumerate(robot.names):
            if "gripper" in name:
                low, high = robot.gripper
                closed = 1 / (1 + np.exp(-(t[:, 0] - steps / robot.hz / 2) * 25))
                targets[:, place] = high - (high - low) * closed
            elif name.endswith(".vel"):
                targets[:, place] = 0.2 * waves[:, place] * (90 if name.startswith("theta") else 1)
        states = np.empty_like(targets)
        states[0] = targets[0]
        for frame in range(steps):
            states[frame + 1] = states[frame] + FOLLOWS * (targets[frame] - states[frame])
        task = self.tasks[self.task_of[index]]
        return RobotEpisode(task, targets[:steps].astype(np.float32), states[:steps].astype(np.float32), robot.reach)


@dataclass(frozen=True)
class RobotEpisode(MadeUpEpisode):
    reach: float = 1.0

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        """A bright link on a dark ground that turns with the second joint."""
        y, x = np.mgrid[:64, :64] - 31.5
        pictures = []
        for angle in self.proprio[np.array(frames), 1] / self.reach:
            along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            link = (np.abs(across) < 4) & (along > 0) & (along < 26)
            pictures.append(np.where(link[..., None], (230, 150, 40), (30, 50, 60 + int(20 * angle))))
        return np.array(pictures, np.uint8)


def write_robot(folder: Path, robot: Robot, length: int = 24) -> Path:
    """A recording of LeRobot's: nothing of Atlas's is in it."""
    convert(RobotDataset(robot, length), folder, Conversion("lerobot", "png"), workers=1)
    shutil.rmtree(folder / "meta" / "atlas")
    info = folder / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"robot_type": robot.type}))
    features = json.loads(info.read_text())["features"]
    features["observation.state"]["names"] = list(robot.names)
    info.write_text(json.dumps(json.loads(info.read_text()) | {"features": features}))
    return folder
