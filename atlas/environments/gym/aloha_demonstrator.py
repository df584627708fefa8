"""Demonstrations of gym-aloha's transfer of a cube: the right arm picks it up, the left one takes it in the air.

The package brings no scripted policy. Both grippers follow poses on straight lines, which inverse kinematics by damped
least squares (Nakamura and Hanafusa, 1986) turn into targets of the joints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.environments.gym.gym_world import GymEnvironment
from atlas.environments.model_variation import rotation_by

TRANSFER = "aloha-transfer-cube"

_ARM, _JOINTS = 8, 6  # numbers of an arm in MuJoCo's state: six joints and two fingers
_FINGERTIPS = 0.125  # m, from the gripper's frame along its x axis: the middle of what the fingers hold with
_ITERATIONS, _DAMPING = 8, 1e-3
# Of the joints: the two that turn about the forearm and the hand move less, or they would turn over where they are
# in line.
_READY = np.array([1.0, 1.0, 1.0, 0.1, 1.0, 0.1])
_OPEN, _CLOSED = 1.0, 0.0
_GRASP = 0.03  # m: the height at which the cube is held on the table, a little above its centre
_MEETING = np.array([0.0, 0.5, 0.25])  # m, in the world's frame, between the arms
_UP, _AHEAD = np.array([0.0, 0.0, 0.08]), np.array([0.01, 0.0, 0.0])  # m; ahead of the left arm
# The fingers' direction and the axis along which they close, in the world's frame: the right ones reach down to the
# left and close along y; the left ones reach to the right and close along z.
_RIGHT_DOWN = np.array([-0.5, 0.0, -np.sqrt(0.75)]), np.array([0.0, -1.0, 0.0])
_LEFT_ACROSS = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class _Pose:
    """Where a gripper should be at a step."""

    step: float
    place: np.ndarray  # [3], of the fingertips, in metres
    turned: np.ndarray  # [3, 3], its columns are the gripper's axes
    opening: float


class AlohaDemonstrator:
    """Transfers the cube of an episode that has just begun, each time in a slightly different way."""

    def __init__(self, env: GymEnvironment, rng: np.random.Generator) -> None:
        self._physics: Any = env.simulation.physics
        cube = self._physics.named.data.xpos["box"].copy()
        self._arms = [_Arm(self._physics, name, first) for name, first in (("left", 0), ("right", _ARM))]
        self._step = 0
        self._plans = _plans(cube, [arm.pose() for arm in self._arms], rng)

    def act(self) -> np.ndarray:
        """See `Expert.act`: float64 [14], for each arm six joints in radians and its gripper (1 open, 0 closed)."""
        self._step += 1
        return np.concatenate(
            [arm.reach(*_between(plan, self._step)) for arm, plan in zip(self._arms, self._plans, strict=True)]
        )


def _plans(cube: np.ndarray, now: Sequence[_Pose], rng: np.random.Generator) -> list[list[_Pose]]:
    """The poses of both arms, left first. Where they meet, how fast they move, and by how much they are off before they
    grasp, is drawn; an episode is a success, and over, once the left fingers touch the cube in the air."""
    left, right = now
    down, across = _axes(*_RIGHT_DOWN), _axes(*_LEFT_ACROSS)
    cube = np.array([*cube[:2], _GRASP])  # an episode begins with it in the air
    meeting = _MEETING + rng.uniform(-0.02, 0.02, 3)
    above, beside, taken = cube + _UP, meeting - 12 * _AHEAD, meeting - _AHEAD
    right_arm = [
        (0, right.place, right.turned, _OPEN),
        (45, above + rng.normal(0.0, 0.01, 3), down, _OPEN),
        (70, cube, down, _OPEN),
        (80, cube, down, _CLOSED),
        (125, meeting, down, _CLOSED),
    ]
    left_arm = [
        (0, left.place, left.turned, _OPEN),
        (60, beside + rng.normal(0.0, 0.02, 3), across, _OPEN),
        (125, beside + rng.normal(0.0, 0.01, 3), across, _OPEN),
        (155, taken, across, _OPEN),
        (170, taken, across, _CLOSED),
    ]
    pace = rng.uniform(0.9, 1.15)
    return [[_Pose(step * pace, *pose) for step, *pose in arm] for arm in (left_arm, right_arm)]


def _axes(ahead: np.ndarray, across: np.ndarray) -> np.ndarray:
    """The rotation matrix [3, 3] of a gripper whose fingers point ahead and close along the axis `across`."""
    return np.stack([ahead, across, np.cross(ahead, across)], axis=1)


def _between(plan: Sequence[_Pose], step: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Place, rotation and opening at a step; the last pose is kept."""
    later = next((i for i, pose in enumerate(plan) if pose.step > step), len(plan) - 1)
    start, end = plan[max(0, later - 1)], plan[later]
    share = float(np.clip((step - start.step) / max(end.step - start.step, 1e-6), 0.0, 1.0))
    turned = rotation_by(share * _rotation_vector(end.turned @ start.turned.T)) @ start.turned
    return (
        start.place + share * (end.place - start.place),
        turned,
        start.opening + share * (end.opening - start.opening),
    )


class _Arm:
    """An arm, and the joint angles that bring its fingertips somewhere."""

    def __init__(self, physics: Any, name: str, first: int) -> None:
        import mujoco

        self._mujoco, self._model = mujoco, physics.model.ptr
        self._data = mujoco.MjData(self._model)  # of its own: nothing moves in the world when angles are searched
        self._data.qpos[:] = physics.data.qpos
        self._body = physics.model.name2id(f"vx300s_{name}/gripper_link", "body")
        self._joints = slice(first, first + _JOINTS)
        self._range = self._model.jnt_range[self._joints]

    def pose(self) -> _Pose:
        place, turned = self._tips()
        return _Pose(0.0, place, turned, _OPEN)

    def _tips(self) -> tuple[np.ndarray, np.ndarray]:
        self._mujoco.mj_kinematics(self._model, self._data)
        turned = self._data.xmat[self._body].reshape(3, 3).copy()
        return self._data.xpos[self._body] + turned[:, 0] * _FINGERTIPS, turned

    def reach(self, place: np.ndarray, turned: np.ndarray, opening: float) -> np.ndarray:
        """Joint angles [6] and the gripper's opening: float64 [7]."""
        jacobian = np.zeros((6, self._model.nv))
        for _ in range(_ITERATIONS):
            tips, axes = self._tips()
            error = np.concatenate([place - tips, _rotation_vector(turned @ axes.T)])
            if np.abs(error).max() < 1e-4:
                break
            self._mujoco.mj_comPos(self._model, self._data)
            self._mujoco.mj_jac(self._model, self._data, jacobian[:3], jacobian[3:], tips, self._body)
            own = jacobian[:, self._joints]
            ready = own * _READY
            change = ready.T @ np.linalg.solve(ready @ own.T + _DAMPING * np.eye(6), error)
            self._data.qpos[self._joints] = np.clip(self._data.qpos[self._joints] + change, *self._range.T)
        return np.append(self._data.qpos[self._joints], opening)


def _rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis times angle [3] of a rotation matrix, for angles below pi."""
    angle = np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1.0, 1.0))
    skew = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    return skew / 2 if angle < 1e-6 else skew * angle / (2 * np.sin(angle))
