"""Action spaces other than LIBERO's, with the names that people use, and datasets in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from atlas.data.episode import Numbers, images_by_episode
from atlas.types import LIBERO_GROUPS, ActionGroup, ActionSpec, Arm

LIBERO = ActionSpec()
POSITION, ROTATION, GRIPPER = LIBERO_GROUPS
FLAT = ActionSpec((POSITION, GRIPPER))  # four numbers: no rotation
NO_GRIPPER = ActionSpec((POSITION, ROTATION))
ABSOLUTE = ActionSpec((replace(POSITION, unit=1.0, delta=False), replace(ROTATION, unit=1.0, delta=False), GRIPPER))


def joints(count: int, arm: Arm | None = None) -> ActionGroup:
    """Joints to go to, in rad, called as LeRobot's own datasets call them."""
    before = f"{arm}_" if arm else ""
    return ActionGroup("joints", tuple(f"{before}joint_{number}" for number in range(count)), arm=arm)


# A small arm: five joints, and a gripper from 0 (closed) to 100 (open) that goes anywhere between.
ARM = ActionSpec((joints(5), ActionGroup("gripper", ("gripper",), continuous=True, open=100.0, closed=0.0)), 30.0)
# Two arms of six joints, each with a gripper that is 1 where it is open and 0 where it is closed.
TWO_ARMS = ActionSpec(
    (
        joints(6, "left"),
        ActionGroup("gripper", ("left_gripper",), arm="left", open=1.0, closed=0.0),
        joints(6, "right"),
        ActionGroup("gripper", ("right_gripper",), arm="right", open=1.0, closed=0.0),
    ),
    50.0,
)
SPACES = {
    "libero": LIBERO,
    "no rotation": FLAT,
    "absolute": ABSOLUTE,
    "no gripper": NO_GRIPPER,
    "joints": ARM,
    "two arms": TWO_ARMS,
}


class MadeUpDataset:
    """Five episodes with two instructions in any action space; each state is where the actions before have led."""

    path, format, environment, sides = Path("made-up"), "made-up", None, None
    tasks, cameras, image = ["open the drawer", "close the drawer"], ["front"], 32

    def __init__(self, spec: ActionSpec) -> None:
        self.action_spec, self.fps, self.proprio_dim = spec, spec.control_hz, spec.dim
        self.lengths = np.array([9, 12, 10, 11, 9])
        self.task_of = np.arange(5) % 2

    def __len__(self) -> int:
        return len(self.lengths)

    def episode(self, index: int) -> MadeUpEpisode:
        rng, steps = np.random.default_rng(index), int(self.lengths[index])
        actions = rng.uniform(-1, 1, (steps, self.action_spec.dim)).astype(np.float32)
        for dimension, gripper in self.action_spec.grippers:
            share = rng.uniform(0, 1, steps) if gripper.continuous else np.arange(steps) > steps / 2
            actions[:, dimension] = gripper.open + share * (gripper.closed - gripper.open)
        reached = actions.copy()
        for group, part in self.action_spec.spans():
            if group.delta or group.kind == "base":
                reached[:, part] = actions[:, part].cumsum(0) / 10
        before = np.concatenate([reached[:1] * 0, reached[:-1]])  # each is seen before its action
        return MadeUpEpisode(self.tasks[self.task_of[index]], actions, before)

    def images(self, camera: str, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return images_by_episode(self, camera, episodes, frames)

    def numbers(self) -> Numbers:
        each = [self.episode(i) for i in range(len(self))]
        return Numbers(np.concatenate([e.actions for e in each]), np.concatenate([e.proprio for e in each]))

    def rows(self, index: int) -> slice:
        first = int(self.lengths[:index].sum())
        return slice(first, first + int(self.lengths[index]))

    def image_size(self, camera: str) -> tuple[int, int]:
        return self.image, self.image

    def fingerprint(self) -> str:
        return self.action_spec.describe()


@dataclass(frozen=True)
class MadeUpEpisode:
    instruction: str
    actions: np.ndarray
    proprio: np.ndarray
    rewards = sim_states = init_state = model_xml = success = None

    def __len__(self) -> int:
        return len(self.actions)

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        levels = np.clip(128 + 60 * self.proprio[np.array(frames), :3], 0, 255).astype(np.uint8)
        return np.broadcast_to(levels[:, None, None], (len(levels), 32, 32, 3)).copy()
