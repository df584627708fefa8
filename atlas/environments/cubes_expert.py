"""The scripted expert of the cubes world, which uses privileged poses, and the disturbances that it recovers from."""

from __future__ import annotations

from typing import Literal

import numpy as np

from atlas.environments.cubes import CubesEnvironment

_GAIN = 0.9  # the share of the remaining error that one step corrects
_HOVER_M = 0.07  # height above the cube while aligning
_NEAR_M, _NEAR_RAD = 0.010, 0.10  # aligned well enough to go down
_LOST_M = 0.03  # when it is this far off, the hand goes up again
_CLOSE_STEPS = 6
_SLIPPED_M = 0.03  # the hand is this much above a cube it should hold
_STALL_STEPS, _STALL_M = 5, 0.004  # a hand that sinks less than this in so many steps has a finger on the cube

Phase = Literal["align", "lower", "close", "lift"]


class CubesExpert:
    """Moves above the named cube, aligns its yaw (modulo 90 degrees), goes down, closes the gripper and lifts.

    It acts on poses, not on a clock, so that it recovers when it is pushed off course or the cube slips.
    """

    def __init__(self, env: CubesEnvironment) -> None:
        self._env = env
        self.phase: Phase = "align"
        self._closing = 0
        self._quarter = 0.0  # added to the yaw after a stall, to grasp the cube's other pair of sides
        self._drops: list[float] = []  # the drops since it began to go down

    def act(self) -> np.ndarray:
        """The next action, float64 [7] in the ActionSpec's units."""
        cube, cube_yaw = self._env.cube_pose(self._env.target)
        hand, hand_yaw = self._env.hand_pose()
        turn = (cube_yaw - hand_yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4
        if self._quarter:  # now only half turns are equivalent
            turn = (cube_yaw + self._quarter - hand_yaw + np.pi / 2) % np.pi - np.pi / 2
        offset = cube - hand
        distance = float(np.linalg.norm(offset[:2]))
        self._advance(distance, abs(turn), float(offset[2]), cube_yaw - hand_yaw)

        goal = offset.copy()
        if self.phase == "align":
            goal[2] += _HOVER_M
        elif self.phase == "lower":
            # The worse the alignment, the slower, down to a halt, so that no finger comes down on the cube.
            misaligned = max(distance / _NEAR_M, abs(turn) / _NEAR_RAD)
            goal[2] *= float(np.clip(1.5 - misaligned / 2, 0.0, 1.0))
            goal[2] = max(goal[2], -0.04)  # two steps of full speed, so that the hand does not overshoot
        elif self.phase == "lift":
            goal = np.array([0.0, 0.0, 0.04])
        position, rotation, _ = self._env.spec.action_spec.groups
        action = np.zeros(7)
        action[:3] = _GAIN * goal / position.unit
        if self.phase in ("align", "lower"):
            action[5] = 0.6 * _GAIN * turn / rotation.unit
        action[6] = 1.0 if self.phase in ("close", "lift") else -1.0
        return np.clip(action, -1.0, 1.0)

    def _advance(self, distance: float, turn: float, drop: float, yaw: float) -> None:
        """Choose the phase. `drop`: the cube's height above the hand, m; negative while the hand is above."""
        if self.phase == "align" and distance < _NEAR_M and turn < _NEAR_RAD:
            self.phase, self._drops = "lower", []
        elif self.phase == "lower":
            self._drops.append(drop)
            if abs(drop) < 0.008:
                self.phase, self._closing = "close", 0
            elif self._stalled():
                self.phase = "align"
                self._quarter = float(np.round(-yaw / (np.pi / 2)) + 1) * np.pi / 2
            elif distance > _LOST_M:
                self.phase = "align"
        elif self.phase == "close":
            self._closing += 1
            if self._closing >= _CLOSE_STEPS:
                self.phase = "lift"
        elif self.phase == "lift" and -drop > _SLIPPED_M:
            self.phase = "align"

    def _stalled(self) -> bool:
        """Whether the hand has stopped sinking although the actions tell it to."""
        drops = self._drops
        return len(drops) > _STALL_STEPS and drops[-1] - drops[-1 - _STALL_STEPS] < _STALL_M


class Disturbance:
    """Adds noise to the expert's actions, and now and then a push of a few steps, so that demonstrations show recovery.

    The noise has zero mean: a policy trained on the executed actions learns the expert's.
    """

    def __init__(
        self, rng: np.random.Generator, noise: float = 0.1, push_rate: float = 0.04, push_strength: float = 0.8
    ) -> None:
        self._rng, self._noise, self._push_rate, self._push_strength = rng, noise, push_rate, push_strength
        self._push = np.zeros(6)
        self._push_steps = 0

    def __call__(self, action: np.ndarray, phase: Phase) -> np.ndarray:
        """The action to execute, [7], within [-1, 1]; the gripper's number is unchanged."""
        if self._push_steps == 0 and phase in ("align", "lower") and self._rng.random() < self._push_rate:
            self._push_steps = int(self._rng.integers(2, 6))
            self._push = self._rng.uniform(-1, 1, 6) * self._push_strength * np.array([1, 1, 0.7, 0.05, 0.05, 0.5])
        disturbed = action.copy()
        noise = self._rng.normal(0.0, self._noise, 6) * np.array([1, 1, 1, 0.1, 0.1, 0.5])
        if phase in ("close", "lift"):
            noise *= 0.3
        disturbed[:6] += noise
        if self._push_steps > 0:
            self._push_steps -= 1
            disturbed[:6] += self._push
        return np.clip(disturbed, -1.0, 1.0)


class CubesDemonstrator:
    """The expert with disturbances."""

    def __init__(self, env: CubesEnvironment, rng: np.random.Generator) -> None:
        self._expert, self._disturb = CubesExpert(env), Disturbance(rng)

    def act(self) -> np.ndarray:
        """See `Expert.act`."""
        action = self._expert.act()
        return self._disturb(action, self._expert.phase)
