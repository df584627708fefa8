"""`gripper`, `lag` and `scale`, as far as recordings alone show them: do actions mean what their ActionSpec says?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.data.hdf5.gripper_values import CLEAR, fingers_follow, is_zero_to_one, map_gripper
from atlas.data.motion import MotionFit
from atlas.data.proprio import proprio_names, state_columns
from atlas.types import ActionGroup

_GAIN, _USUAL_GAIN = (0.12, 0.40), 0.22  # for robosuite's OSC_POSE at 20 Hz: 0.18 to 0.26 in recordings
_STILL = 1e-6
_NEAR_END = 0.25  # of the way from open to closed
_LAGS = range(-3, 9)  # frames from a target to the motion towards it that are tried
_FOLLOWS = 0.3  # R2 from which a state follows its targets
_CLEARER = 0.02  # by how much a later action must explain the motion better, to be the one that is meant
_POSE_R = 0.8  # correlation of a state with its target from which it goes there
_MOST_DELAY = 4  # frames
_SAME_UNIT = (0.4, 2.5)  # the slope of the state by its target
_ANY_GAIN = (0.02, 1.5)  # for any controller: the hand moves, but not further than it is told to


def check_gripper(context: CheckContext) -> Iterator[Finding]:
    """The values of each gripper, and whether the fingers do what they say."""
    for dimension, gripper in context.dataset.action_spec.grippers:
        commanded = [actions[:, dimension] for actions, _ in context.sampled]
        values = np.concatenate(commanded)
        yield from _values(context, gripper, values)
        if np.ptp(values) >= 1e-6 and not _in_another_range(gripper, values):
            # From -1, open, to 1, closed; unchanged to the bit if they already are.
            turned = [map_gripper(each, gripper.open, gripper.closed) for each in commanded]
            agreement = fingers_follow(turned, [proprio for _, proprio in context.sampled])
            if agreement is None:
                agreement = _state_opens(context, dimension, gripper)
            if agreement is not None:
                yield from _sign(context, gripper, agreement)


def _state_opens(context: CheckContext, dimension: int, gripper: ActionGroup) -> float | None:
    """Correlation of a gripper's command with its opening that follows, where the proprio has it in the same numbers;
    negative if its closed value closes it. None if it is not there, does not move, or is in other numbers as far as
    that can be told: those of nobody's name should come near to both ends."""
    column = state_columns(context.dataset, gripper.names)
    if column is None:
        return None
    if set(gripper.names).isdisjoint(name for name, _ in proprio_names(context.dataset)):
        share = gripper.closed_share(np.concatenate([proprio[:, column[0]] for _, proprio in context.sampled]))
        if share.min() > _NEAR_END or share.max() < 1 - _NEAR_END:
            return None
    commanded = np.concatenate([gripper.closed_share(actions[:-1, dimension]) for actions, _ in context.sampled])
    opening = np.concatenate([1 - gripper.closed_share(proprio[1:, column[0]]) for _, proprio in context.sampled])
    if commanded.std() < _STILL or opening.std() < _STILL:
        return None
    return float(np.corrcoef(commanded, opening)[0, 1])


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
        message = f"the fingers close when the action is {closed} (correlation {agreement:.2f})"
        yield Finding("gripper", "info", message, None, evidence, bugs=("gripper",))


def check_lag(context: CheckContext) -> Iterator[Finding]:
    """Whether the motion from t to t + 1 is explained by the action at t, or by an earlier or later one."""
    yield from _lag_of_targets(context)
    motion = context.motion
    if motion is None or context.takes_poses:
        return
    evidence = {
        "delay_frames": motion.delay,
        "r2": round(motion.axes_r2, 3),
        "weights": np.round(motion.weights, 5).tolist(),
    }
    if motion.delay == 0:
        message = f"the action at t moves the hand from t on (R2 {motion.axes_r2:.2f})"
        yield Finding("lag", "info", message, None, evidence, bugs=("late_actions", "observation_order"))
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
    yield from _scale_of_targets(context)
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
        message = f"the hand moves {motion.gain:.2f} of the commanded distance (1 = {unit_m:g} m)"
        return Finding("scale", "info", message, None, evidence, bugs=("control_rate", "state_source"))
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


# ---- targets ---------------------------------------------------------------------------------------------------


def _targets(context: CheckContext) -> Iterator[tuple[ActionGroup, list[tuple[np.ndarray, np.ndarray]]]]:
    """The groups of joints and positions to go to whose state the proprio has, and of each episode the targets and the
    states, float64 [T, n] each."""
    for group, part in context.dataset.action_spec.spans("joints", "position"):
        columns = None if group.delta else state_columns(context.dataset, group.names)
        if columns is not None:
            yield group, [(actions[:, part], proprio[:, columns]) for actions, proprio in context.sampled]


def _lag_of_targets(context: CheckContext) -> Iterator[Finding]:
    """Find the target that explains the motion from t to t + 1: that the state goes a part of the way towards it."""
    for group, episodes in _targets(context):
        explained = {lag: _explained(episodes, lag) for lag in _LAGS}
        best = max(explained, key=lambda lag: explained[lag])
        answer = max((lag for lag in _LAGS if lag >= 0), key=lambda lag: explained[lag])
        clearly = explained[best] > explained[answer] + _CLEARER  # smooth motion hardly tells them apart
        lag = best if clearly and _moves_first(episodes) else answer
        r2 = explained[lag]
        evidence: dict[str, object] = {"delay_frames": lag, "r2": round(r2, 3), "group": group.label}
        if r2 < _FOLLOWS:
            continue
        if lag < 0:
            frames = f"{-lag} frame{'s' if lag < -1 else ''}"
            yield Finding(
                "lag",
                "error",
                f"the motion of the {group.label} from t to t + 1 is explained by the action at t + {-lag} (R2 "
                f"{r2:.2f}): actions are {frames} too late",
                f"Move the actions {frames} towards the start, or record each observation before its action.",
                evidence,
                bugs=("late_actions", "observation_order"),
            )
        else:
            when = "from t on" if lag == 0 else f"{lag} frames later, as robots may"
            message = f"the action at t moves the {group.label} {when} (R2 {r2:.2f})"
            yield Finding("lag", "info", message, None, evidence, bugs=("late_actions", "observation_order"))


def _moves_first(episodes: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether states change before their targets do, or at the same time, which no robot can.

    The way to a target alone does not say it: an arm that hangs below its targets and follows them quickly goes towards
    later ones, too.
    """
    ranges = np.ptp(np.concatenate([states for _, states in episodes]), axis=0)
    changes = [(np.diff(targets, axis=0), np.diff(states, axis=0)) for targets, states in episodes]
    followed = {}
    for delay in range(-_MOST_DELAY, 2 * _MOST_DELAY + 1):
        late, early = max(0, delay), max(0, -delay)
        commanded = [targets[early : max(0, len(targets) - late)] for targets, _ in changes]
        answered = [states[late : max(0, len(states) - early)] for _, states in changes]
        followed[delay] = _explained_share(commanded, answered, ranges)
    before, after = (max(r2 for delay, r2 in followed.items() if (delay > 0) is later) for later in (False, True))
    return before > after + _CLEARER


def _explained(episodes: list[tuple[np.ndarray, np.ndarray]], lag: int) -> float:
    """The share of the motion's variance (R2) that a single gain of the way to the target `lag` frames ago explains."""
    moves, ways = [], []
    for targets, states in episodes:
        first, end = max(0, lag), min(len(states) - 1, len(states) + lag)
        if end - first >= 2:
            moves.append(np.diff(states, axis=0)[first:end])
            ways.append(targets[first - lag : end - lag] - states[first:end])
    return _explained_share(ways, moves, np.ptp(np.concatenate([states for _, states in episodes]), axis=0))


def _explained_share(causes: list[np.ndarray], moves: list[np.ndarray], ranges: np.ndarray) -> float:
    """R2 of moves [n, d] of each episode as one gain times their causes, in shares of each number's range."""
    if not moves:
        return 0.0
    cause, move = ((np.concatenate(each) / np.maximum(ranges, _STILL)).ravel() for each in (causes, moves))
    if (move**2).mean() < _STILL**2 or (cause**2).mean() < _STILL**2:
        return 0.0
    gain = max(0.0, float(move @ cause / (cause @ cause)))
    return 1 - float(((move - gain * cause) ** 2).sum() / (move**2).sum())


def _scale_of_targets(context: CheckContext) -> Iterator[Finding]:
    """Whether states are in the unit of their targets, and go to where they are told."""
    for group, episodes in _targets(context):
        each = {name: _slope(episodes, place) for place, name in enumerate(group.names)}
        slopes = {name: slope for name, slope in each.items() if slope is not None}
        if not slopes:
            continue
        low, high = _SAME_UNIT
        evidence: dict[str, object] = {"slopes": {name: round(slope, 4) for name, slope in slopes.items()}}
        wrong = [name for name, slope in slopes.items() if not low <= slope <= high]
        if not wrong:
            message = f"the state of the {group.label} follows the actions, in the same unit ({', '.join(slopes)})"
            yield Finding("scale", "info", message, None, evidence, bugs=("control_rate", "state_source"))
            continue
        middle = float(np.median([slopes[name] for name in wrong]))
        against = middle < 0
        yield Finding(
            "scale",
            "error",
            f"{', '.join(wrong)}: the state moves {middle:.3g} for a target's 1"
            + (", the other way" if against else ", as if one were in another unit")
            + (" (degrees and radians)" if not against and _is_degrees(middle) else ""),
            "Bring actions and proprio to the same unit and direction where the data is converted.",
            evidence,
            bugs=("control_rate", "state_source"),
        )


def _slope(episodes: list[tuple[np.ndarray, np.ndarray]], place: int) -> float | None:
    """The distance that a number of the state moves for a target's 1, after whatever delay; None if it does not follow
    it."""
    best, slope = _POSE_R, None
    for delay in range(_MOST_DELAY + 1):
        targeted = np.concatenate([targets[: len(targets) - delay, place] for targets, _ in episodes])
        is_at = np.concatenate([states[delay:, place] for _, states in episodes])
        if len(targeted) < 2 or targeted.std() < _STILL or is_at.std() < _STILL:
            return None
        r = float(np.corrcoef(targeted, is_at)[0, 1])
        if abs(r) > best:
            best, slope = abs(r), float(np.sign(r) * is_at.std() / targeted.std())
    return slope


def _is_degrees(slope: float) -> bool:
    return any(abs(slope / factor - 1) < 0.3 for factor in (np.rad2deg(1), np.deg2rad(1)))
