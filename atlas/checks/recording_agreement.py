"""`gripper`, `lag` and `scale`, as far as recordings alone show them: do actions mean what their ActionSpec says?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.data.hdf5.gripper_values import CLEAR, fingers_follow, is_zero_to_one, map_gripper
from atlas.data.motion import MotionFit
from atlas.types import ActionGroup

_GAIN, _USUAL_GAIN = (0.12, 0.40), 0.22  # for robosuite's OSC_POSE at 20 Hz: 0.18 to 0.26 in recordings
_ANY_GAIN = (0.02, 1.5)  # for any controller: the hand moves, but not further than it is told to


def check_gripper(context: CheckContext) -> Iterator[Finding]:
    """The values of each gripper, and whether the fingers do what they say."""
    for dimension, gripper in context.dataset.action_spec.grippers:
        told = [actions[:, dimension] for actions, _ in context.sampled]
        values = np.concatenate(told)
        yield from _values(context, gripper, values)
        if np.ptp(values) >= 1e-6 and not _in_another_range(gripper, values):
            # From -1, open, to 1, closed; unchanged to the bit if they already are.
            turned = [map_gripper(each, gripper.open, gripper.closed) for each in told]
            agreement = fingers_follow(turned, [proprio for _, proprio in context.sampled])
            if agreement is not None:
                yield from _sign(context, gripper, agreement)


def _in_another_range(gripper: ActionGroup, values: np.ndarray) -> bool:
    return (gripper.open, gripper.closed) == (-1.0, 1.0) and is_zero_to_one(values)


def _values(context: CheckContext, gripper: ActionGroup, values: np.ndarray) -> Iterator[Finding]:
    """values: float64 [frames], the commands to a gripper."""
    low, high = float(values.min()), float(values.max())
    evidence, name = {"min": low, "max": high}, gripper.label
    if _in_another_range(gripper, values):
        yield Finding(
            "gripper",
            "error",
            f"the {name}'s actions lie within [{low:g}, {high:g}], but should be -1 (open) to +1 (closed)",
            f"Map them {context.where_to_change('gripper_open and gripper_closed')}.",
            evidence,
            bugs=("gripper",),
        )
        return
    share = gripper.closed_share(values)
    between = float((np.abs(np.abs(2 * share - 1) - 1) > 1e-6).mean())
    beyond = float((np.abs(map_gripper(values, gripper.open, gripper.closed)) > 1 + 1e-6).mean())
    if not gripper.continuous and (between or beyond):
        ends = f"{gripper.open:g} (open) or {gripper.closed:+g} (close)"
        yield Finding(
            "gripper",
            "warning",
            f"the {name} action is not {ends} everywhere: it is within [{low:g}, {high:g}], and "
            f"{between + beyond:.0%} of the frames have another value",
            "Round it when the data is converted, if the gripper can only open and close.",
            evidence | {"share_between": round(between + beyond, 4)},
            bugs=("gripper",),
        )
    if gripper.continuous and beyond:
        ends = f"{gripper.open:g} (open) to {gripper.closed:g} (closed)"
        yield Finding(
            "gripper",
            "warning",
            f"{beyond:.0%} of the {name}'s actions lie beyond {ends}: they are within [{low:g}, {high:g}]",
            f"Say what is open and what is closed {context.where_to_change('open and closed')}.",
            evidence | {"share_beyond": round(beyond, 4)},
        )
    if high - low < 1e-6:
        what = "closed" if share[0] > 0.5 else "open"
        yield Finding(
            "gripper",
            "warning",
            f"the {name} is told to be {what} all the time",
            "Check the column that it was read from, unless the task needs no gripper.",
            evidence,
        )


def _sign(context: CheckContext, gripper: ActionGroup, agreement: float) -> Iterator[Finding]:
    evidence, name, closed = {"correlation": round(agreement, 3)}, gripper.label, f"{gripper.closed:+g}"
    if agreement > CLEAR:
        ends = "gripper_open: 1, gripper_closed: -1"
        if (gripper.open, gripper.closed) != (-1.0, 1.0):
            ends = f"open: {gripper.closed:g}, closed: {gripper.open:g}"
        yield Finding(
            "gripper",
            "error",
            f"the {name}'s sign is flipped: the fingers open when the action nears {closed}, which should close them "
            f"(correlation {agreement:.2f})",
            f"Negate the gripper's action {context.where_to_change(ends)}.",
            evidence,
            bugs=("gripper",),
        )
    elif agreement < -CLEAR:
        said = f"the fingers close when the action is {closed} (correlation {agreement:.2f})"
        yield Finding("gripper", "info", said, None, evidence, bugs=("gripper",))


def check_lag(context: CheckContext) -> Iterator[Finding]:
    """Whether the motion from t to t + 1 is explained by the action at t, or by an earlier or later one."""
    motion = context.motion
    if motion is None or context.takes_poses:
        return
    evidence = {
        "delay_frames": motion.delay,
        "r2": round(motion.axes_r2, 3),
        "weights": np.round(motion.weights, 5).tolist(),
    }
    if motion.delay == 0:
        said = f"the action at t moves the hand from t on (R2 {motion.axes_r2:.2f})"
        yield Finding("lag", "info", said, None, evidence, bugs=("late_actions", "observation_order"))
        return
    frames = f"{abs(motion.delay)} frame{'s' if abs(motion.delay) > 1 else ''}"
    if motion.delay < 0:
        yield Finding(
            "lag",
            "error",
            f"the motion from t to t + 1 is explained by the action at t + {-motion.delay} (R2 {motion.axes_r2:.2f}): "
            f"actions are {frames} too late",
            f"Move the actions {frames} towards the start, or record each observation before its action.",
            evidence,
            bugs=("late_actions", "observation_order"),
        )
    elif context.known_controller:
        yield Finding(
            "lag",
            "error",
            f"the motion from t to t + 1 is explained by the action at t - {motion.delay} (R2 {motion.axes_r2:.2f}): "
            f"actions are {frames} too early",
            f"Move the actions {frames} towards the end.",
            evidence,
            bugs=("late_actions", "observation_order"),
        )
    else:
        yield Finding(
            "lag",
            "warning",
            f"the hand begins to move {frames} after the action (R2 {motion.axes_r2:.2f}), as robots may",
            f"If the robot has no such delay, move the actions {frames} towards the end.",
            evidence,
            bugs=("late_actions", "observation_order"),
        )


def check_scale(context: CheckContext) -> Iterator[Finding]:
    """Whether the hand goes where, and about as far as, the actions say."""
    spec, motion = context.dataset.action_spec, context.motion
    if context.takes_poses:
        yield Finding(
            "scale",
            "error",
            f"the actions are target poses, not deltas: the hand's next position explains them (R2 "
            f"{context.poses_r2:.2f})",
            f"Convert them to deltas, or say what they are {context.where_to_change('delta: false')}.",
            {"r2_with_position": round(context.poses_r2, 3)},
        )
        return
    if motion is None:
        return
    if not motion.straight:
        ((group, _),) = spec.spans("position")
        names = group.names
        moves = [
            f"{'-' if sign < 0 else ''}{names[source]} moves {axis}"
            for axis, (source, sign) in zip("xyz", motion.axes, strict=True)
        ]
        yield Finding(
            "scale",
            "error",
            f"the actions' axes are not those of proprio: {', '.join(moves)} (R2 {motion.axes_r2:.2f}, but "
            f"{motion.r2:.2f} as they are named)",
            "Put actions and proprio into the robot's base frame where the data is converted.",
            {"axes": [list(axis) for axis in motion.axes], "r2": round(motion.axes_r2, 3)},
            bugs=("state_source",),
        )
        return
    yield _gain(context, motion)


def _gain(context: CheckContext, motion: MotionFit) -> Finding:
    ((group, _),) = context.dataset.action_spec.spans("position")
    unit_m = group.unit
    low, high = _GAIN if context.known_controller else _ANY_GAIN
    evidence = {"gain": round(motion.gain, 4), "expected": [low, high], "unit_m": unit_m}
    if low <= motion.gain <= high or context.has_errors("video"):  # at another rate it moves further per frame
        said = f"the hand moves {motion.gain:.2f} of the commanded distance (1 = {unit_m:g} m)"
        return Finding("scale", "info", said, None, evidence, bugs=("control_rate", "state_source"))
    unit = unit_m * motion.gain / (_USUAL_GAIN if context.known_controller else 1.0)
    way = "further" if motion.gain > high else "less far"
    return Finding(
        "scale",
        "error",
        f"the hand moves {motion.gain:.3g} times the commanded distance (1 = {unit_m:g} m), {way} than a controller "
        f"would ({low:g} to {high:g}): the actions seem to be in another unit, 1 = {unit:.2g} m",
        f"Scale the actions {context.where_to_change('position_unit_m and rotation_unit_rad')}.",
        evidence | {"estimated_unit_m": round(unit, 5)},
        bugs=("control_rate",),
    )
