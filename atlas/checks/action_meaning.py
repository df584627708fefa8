"""Other meanings that the numbers of recorded actions may have: each turns them into the world's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from atlas.checks.finding import CheckId
from atlas.data.episode import Episode
from atlas.types import ActionSpec

_SHIFTS = (1, -1, 2, -2, 3, -3)
_SCALES = (2.0, 0.5, 4.0, 0.25, 10.0, 0.1, 20.0, 0.05)

Change = Callable[[np.ndarray, "Recorded"], np.ndarray]


@dataclass(frozen=True)
class Recorded:
    """An episode with the positions of things in its frames."""

    number: int
    episode: Episode
    positions: list[dict[str, np.ndarray]]  # per frame, see Environment.positions


@dataclass(frozen=True)
class Meaning:
    """A meaning that the numbers of the actions may have. change: turns them into the world's own."""

    check: CheckId
    name: str
    fix: str
    change: Change
    steps_a_frame: int = 1
    first: int = 0  # the frame from which the actions are known
    value: float | None = None


AS_RECORDED = Meaning("replay", "as recorded", "", lambda actions, _: actions)


def other_meanings(spec: ActionSpec, ratio: float) -> Iterator[Meaning]:
    """Other meanings that actions may have, in a world with this spec.

    ratio: how far the hand went in the recording, divided by how far it goes with the actions unchanged.
    """
    where = "where the data is converted"
    yield from _gripper_meanings(spec, where)
    for frames in _SHIFTS:
        late, way = ("late", "start") if frames > 0 else ("early", "end")
        count = f"{abs(frames)} frame{'s' if abs(frames) > 1 else ''}"

        def moved(actions: np.ndarray, _: Recorded, frames: int = frames) -> np.ndarray:
            return np.asarray(actions[np.clip(np.arange(len(actions)) + frames, 0, len(actions) - 1)])

        yield Meaning(
            "lag",
            f"with the actions moved {count} towards the {way}",
            f"They are {count} too {late}: move them {where}, and record each observation before its action.",
            moved,
            first=max(0, -frames),
            value=frames,
        )

    def scaled(part: list[int], factor: float) -> Change:
        def change(actions: np.ndarray, _: Recorded) -> np.ndarray:
            changed = actions.copy()
            changed[:, part] *= factor
            return changed

        return change

    for factor in (round(float(ratio), 3), *_SCALES):
        for what, part in (
            ("the pose", spec.pose),
            *(
                (f"the {group.label}", list(range(spec.dim))[part])
                for group, part in spec.spans("position", "rotation")
            ),
        ):
            if factor > 0:
                yield Meaning(
                    "scale",
                    f"with {what} multiplied by {factor:g}",
                    f"Give the unit of the actions in data.features.action_spec, or scale them {where}.",
                    scaled(part, factor),
                    value=factor,
                )
    positions = spec.spans("position")
    if len(positions) == 1 and positions[0][0].delta:  # a world has one hand
        ((group, place),) = positions
        yield Meaning(
            "scale",
            "with the position read as a target",
            "Set delta: false in data.features.action_spec, or convert the actions to deltas.",
            lambda actions, recorded: _as_deltas(actions, recorded, place, group.unit),
        )
    for steps in (2, 3, 4):
        yield Meaning(
            "video",
            f"with each action held for {steps} steps",
            "The recording is slower than the world: record and evaluate at one rate.",
            lambda actions, _: actions,
            steps_a_frame=steps,
            value=spec.control_hz / steps,
        )


def _gripper_meanings(spec: ActionSpec, where: str) -> Iterator[Meaning]:
    """Other meanings of grippers, in a world whose grippers go from -1 to 1."""
    grippers = [dimension for dimension, _ in spec.grippers]
    if not grippers:
        return

    def turned(factor: float, offset: float) -> Change:
        def change(actions: np.ndarray, _: Recorded) -> np.ndarray:
            changed = actions.copy()
            changed[:, grippers] = factor * changed[:, grippers] + offset
            return changed

        return change

    yield Meaning("gripper", "with the gripper negated", f"Negate the gripper's action {where}.", turned(-1, 0))
    for name, change in (("0 to 1 for open to closed", turned(2, -1)), ("1 to 0 for open to closed", turned(-2, 1))):
        yield Meaning(
            "gripper", f"with the gripper read as {name}", f"Map the gripper to -1 open, +1 closed {where}.", change
        )


def _as_deltas(actions: np.ndarray, recorded: Recorded, position: slice, unit_m: float) -> np.ndarray:
    """Target positions as deltas from where the hand was."""
    hand = np.stack([positions["hand"] for positions in recorded.positions])[: len(actions)]
    changed = actions.astype(np.float64)
    changed[:, position] = (changed[:, position] - hand) / unit_m
    return changed
