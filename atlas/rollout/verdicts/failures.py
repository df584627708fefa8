"""The way in which an episode failed, from where things were at each step and the gripper's commands.

A failure is of one kind, the first that holds: another object was lifted; the right one was grasped, and dropped or not
lifted enough; the robot hit what its task is not about; the gripper closed at the right one and held nothing; the hand
stood still; it never came near; or time ran out while it still moved.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from atlas.environments.environment import FeelsContacts, NamesTarget, NamesTaskThings, Simulator

FailureKind = Literal[
    "wrong_object",
    "dropped",
    "lifted_too_little",
    "collided",
    "missed_grasp",
    "stuck",
    "never_reached",
    "timed_out_moving",
]
FAILURE_KINDS: tuple[FailureKind, ...] = get_args(FailureKind)
FAILURE_WORDS: dict[FailureKind, str] = {
    "wrong_object": "lifted another object",
    "dropped": "grasped it and dropped it",
    "lifted_too_little": "grasped it and lifted it too little",
    "collided": "hit the table or another object",
    "missed_grasp": "closed the gripper at it and held nothing",
    "stuck": "stood still",
    "never_reached": "never came near it",
    "timed_out_moving": "was at it and still moved when time ran out",
}
NEAR_M = 0.05  # from the hand's grip site to the object's centre: it is there
RAISED_M = 0.01  # an object that is so much higher than at the start is held
_WRONG_M = 0.02  # another object that is so much higher was lifted
_KEPT = 0.5  # of its greatest height, that an object still has when it was not dropped
HIT_N = 10.0  # a touch of more force is a hit: a cube that is pushed along resists with 20, a table with hundreds
_STILL_STEPS, _STILL_M = 40, 0.005  # so long at the end the hand has moved by no more
_HAND, _TABLE = "hand", "table"


class Failure(NamedTuple):
    """The way in which an episode has failed, and the number of steps after which that was to be seen."""

    kind: FailureKind
    step: int


@dataclass(frozen=True)
class Motion:
    """T steps of an episode: T + 1 places, one before each and one at the end, in m."""

    hand: np.ndarray  # float64 [T + 1, 3]
    objects: dict[str, np.ndarray]  # {name: float64 [T + 1, 3]}
    closed: np.ndarray  # bool [T]: whether the gripper was told to close; false throughout without one
    hit: tuple[Set[str], ...] = ()  # T sets of what was hit in each step; none where nobody felt it


class MotionWatch:
    """Looks on while an episode is played that has just begun."""

    def __init__(self, env: Simulator) -> None:
        self._env = env
        self._grippers = env.spec.action_spec.grippers
        self._target = env.target_object() if isinstance(env, NamesTarget) else None
        self._things = env.task_things() if isinstance(env, NamesTaskThings) else None
        self._places = [env.positions()]
        self._closed: list[bool] = []
        self._hit: list[Set[str]] = []

    def stepped(self, action: np.ndarray) -> None:
        """Call after each step, with its action [A]."""
        self._places.append(self._env.positions())
        told = [float(group.closed_share(np.asarray(action[d : d + 1]))[0]) for d, group in self._grippers]
        self._closed.append(any(share > 0.5 for share in told))
        if isinstance(self._env, FeelsContacts):
            self._hit.append({name for name, force in self._env.contact_forces().items() if force > HIT_N})

    def failure(self) -> Failure:
        """Say how an episode that has not succeeded has failed."""
        names = [name for name in self._places[0] if name != _HAND and not name.endswith(" finger")]
        motion = Motion(
            np.array([places[_HAND] for places in self._places]),
            {name: np.array([places[name] for places in self._places]) for name in names},
            np.array(self._closed, bool),
            tuple(self._hit),
        )
        return classify(motion, self._target, self._things)


def classify(motion: Motion, target: str | None, things: Set[str] | None = None) -> Failure:
    """target: the object that the task is about; None where it is not known, which leaves the kinds that need none.
    things: what the robot has to touch; None: the target, or, where there is none, all but the table."""
    end = len(motion.hand) - 1
    still = _still_since(motion.hand)
    hit = _first_hit(motion, {target} if things is None and target is not None else things)
    if target is None:
        if hit is not None:
            return Failure("collided", hit)
        return Failure("timed_out_moving", end) if still is None else Failure("stuck", still)
    rise = {name: places[:, 2] - places[0, 2] for name, places in motion.objects.items()}
    distance = np.linalg.norm(motion.objects[target] - motion.hand, axis=1)  # [T + 1]
    wrong = np.any([height > _WRONG_M for name, height in rise.items() if name != target], axis=0)
    if wrong.any():
        return Failure("wrong_object", int(np.argmax(wrong)))
    held = (rise[target] > RAISED_M) & (distance < 2 * NEAR_M)
    if held.any():
        return _after_grasp(rise[target], held)
    if hit is not None:
        return Failure("collided", hit)
    near = distance < NEAR_M
    if (grasps := near[1:] & motion.closed).any():
        return Failure("missed_grasp", int(np.argmax(grasps)) + 1)
    if still is not None:
        return Failure("stuck", still)
    return Failure("timed_out_moving", end) if near.any() else Failure("never_reached", int(np.argmin(distance)))


def _after_grasp(rise: np.ndarray, held: np.ndarray) -> Failure:
    """The fate of an object [T + 1] that was held in some of the steps [T + 1]."""
    top = int(np.argmax(np.where(held, rise, -np.inf)))
    low = rise < _KEPT * rise[top]
    if low[-1]:
        return Failure("dropped", top + int(np.argmax(low[top:])))
    return Failure("lifted_too_little", top)


def _first_hit(motion: Motion, things: Set[str] | None) -> int | None:
    """The step after which the robot had hit what it need not touch. things: see `classify`."""
    steps = enumerate(motion.hit, start=1)
    return next((step for step, names in steps if (names & {_TABLE} if things is None else names - things)), None)


def _still_since(hand: np.ndarray) -> int | None:
    """The step from which on the hand [T + 1, 3] stands still; None where it does not."""
    if not _stands_still(hand):
        return None
    away = np.abs(hand - hand[-1]).max(axis=1) >= _STILL_M
    return int(np.flatnonzero(away)[-1]) + 1 if away.any() else 0


def _stands_still(hand: np.ndarray) -> bool:
    last = hand[-_STILL_STEPS:]
    return len(hand) > _STILL_STEPS and bool(np.ptp(last, axis=0).max() < _STILL_M)
