"""Action spaces other than LIBERO's, by what people call them."""

from __future__ import annotations

from dataclasses import replace

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
