"""How an episode failed, from where things were at each step and what the gripper was told.

A failure is of one kind, the first that holds: another object was lifted; the right one was grasped, and dropped or not
lifted enough; the gripper closed at it and held nothing; the hand stood still; it never came near; or time ran out
while it still moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from atlas.environments.environment import NamesTarget, Simulator

FailureKind = Literal[
    "wrong_object", "dropped", "lifted_too_little", "missed_grasp", "stuck", "never_reached", "timed_out_moving"
]
FAILURE_KINDS: tuple[FailureKind, ...] = get_args(FailureKind)
FAILURE_WORDS: dict[FailureKind, str] = {
    "wrong_object": "lifted another object",
    "dropped": "grasped it and dropped it",
    "lifted_too_little": "grasped it and lifted it too little",
    "missed_grasp": "closed the gripper at it and held nothing",
    "stuck": "stood still",
    "never_reached": "never came near it",
    "timed_out_moving": "was at it and still moved when time ran out",
}
NEAR_M = 0.05  # from the hand's grip site to the object's centre: it is there
RAISED_M = 0.01  # an object that is so much higher than at the start is held
_WRONG_M = 0.02  # another object that is so much higher was lifted
_KEPT = 0.5  # of its greatest height, that an object still has when it was not dropped
_STILL_STEPS, _STILL_M = 40, 0.005  # so long at the end the hand has moved by no more
_HAND = "hand"


@dataclass(frozen=True)
class Motion:
    """T steps of an episode: T + 1 places, one before each and one at the end, in m."""

    hand: np.ndarray  # float64 [T + 1, 3]
    objects: dict[str, np.ndarray]  # {name: float64 [T + 1, 3]}
    closed: np.ndarray  # bool [T]: whether the gripper was told to close; false throughout without one


class MotionWatch:
    """Looks on while an episode is played that has just begun."""

    def __init__(self, env: Simulator) -> None:
        self._env = env
        self._grippers = env.spec.action_spec.grippers
        self._target = env.target_object() if isinstance(env, NamesTarget) else None
        self._places = [env.positions()]
        self._closed: list[bool] = []

    def stepped(self, action: np.ndarray) -> None:
        """Call after each step, with its action [A]."""
        self._places.append(self._env.positions())
        told = [float(group.closed_share(np.asarray(action[d : d + 1]))[0]) for d, group in self._grippers]
        self._closed.append(any(share > 0.5 for share in told))

    def failure(self) -> FailureKind:
        """How it has failed; for an episode that has not succeeded."""
        names = [name for name in self._places[0] if name != _HAND and not name.endswith(" finger")]
        motion = Motion(
            np.array([places[_HAND] for places in self._places]),
            {name: np.array([places[name] for places in self._places]) for name in names},
            np.array(self._closed, bool),
        )
        return classify(motion, self._target)


def classify(motion: Motion, target: str | None) -> FailureKind:
    """target: the object that the task is about; None where it is not known, which leaves the last kinds."""
    still = _stands_still(motion.hand)
    if target is None:
        return "stuck" if still else "timed_out_moving"
    rise = {name: places[:, 2] - places[0, 2] for name, places in motion.objects.items()}
    distance = np.linalg.norm(motion.objects[target] - motion.hand, axis=1)  # [T + 1]
    others = [height for name, height in rise.items() if name != target]
    if any(height.max() > _WRONG_M for height in others):
        return "wrong_object"
    held = (rise[target] > RAISED_M) & (distance < 2 * NEAR_M)
    if held.any():
        return "dropped" if rise[target][-1] < _KEPT * rise[target][held].max() else "lifted_too_little"
    near = distance < NEAR_M
    if (near[1:] & motion.closed).any():
        return "missed_grasp"
    if still:
        return "stuck"
    return "timed_out_moving" if near.any() else "never_reached"


def _stands_still(hand: np.ndarray) -> bool:
    last = hand[-_STILL_STEPS:]
    return len(hand) > _STILL_STEPS and bool(np.ptp(last, axis=0).max() < _STILL_M)
