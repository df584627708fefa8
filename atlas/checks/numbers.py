"""`actions`: the numbers of actions and state are finite, within their ranges, not always the same, without jumps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from atlas.checks.camera_images import draw_histograms
from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.data.noops import without_noops
from atlas.data.proprio import has_libero_proprio

_STILL = 1e-6
_MOVED_M = 0.005  # a hand that moves this far along an axis did so on purpose
_SATURATED = 0.5  # of the frames lie at the same end of the range
_OUTLIER = 20.0  # times the range of 90% of the values
_LEAP, _LEAP_OF_RANGE = 8.0, 0.1  # times what 90% of the frames move by; of the range of 90% of the values
_NOOPS = 0.3
_REPEATED = 0.1
_SHOWN = 3
_MOST_EPISODES = 5000  # evenly over the dataset

# Axis-angle rotations may jump by a whole turn: near 180 degrees an axis and its opposite mean almost the same.
LIBERO_ROTATION = slice(3, 6)  # of LIBERO's proprio
_NEAR_HALF_TURN = 0.7 * np.pi  # from which length of a rotation on its opposite is near


def check_actions(context: CheckContext) -> Iterator[Finding]:
    dataset = context.dataset
    if bad := context.not_finite:
        yield Finding(
            "actions",
            "error",
            f"{len(bad)} of {len(dataset)} episodes hold actions or proprio that are not finite: {bad[:_SHOWN]}",
            "Repair these episodes or leave them out.",
            {"episodes": bad},
            fatal=True,
        )
        return
    actions = np.concatenate([dataset.episode(i).actions for i in context.sample(_MOST_EPISODES)])
    yield from _stuck(context, actions)
    yield from _ranges(context, actions)
    yield from _repeats(context)
    yield from _leaps(context)
    yield _overview(context, actions)


def _stuck(context: CheckContext, actions: np.ndarray) -> Iterator[Finding]:
    """Dimensions that never change. This is an error if they hold something, or the hand moves all the same."""
    spec = context.dataset.action_spec
    lost: list[str] = []
    unused: list[str] = []
    for dimension in spec.pose:  # for grippers, the check `gripper` says so
        name = spec.names[dimension]
        if np.ptp(actions[:, dimension]) >= _STILL:
            continue
        held = abs(float(actions[0, dimension])) > _STILL
        (lost if held or _hand_moves_along(context, dimension) else unused).append(name)
    if lost:
        yield Finding(
            "actions",
            "error",
            f"the action dimensions {lost} never change, but the hand moves as if they did",
            "Check the column that they were read from (data.features.action_spec names it).",
            {"constant": lost},
        )
    if unused:
        yield Finding(
            "actions",
            "warning",
            f"the action dimensions {unused} never change",
            "Leave them out of the action space, or check whether they were read from the right column.",
            {"constant": unused},
        )


def _hand_moves_along(context: CheckContext, dimension: int) -> bool:
    """Whether the hand moves along a position axis, if proprio is known to begin with its position."""
    if context.motion is None:  # otherwise there is one position, and proprio begins with it
        return False
    ((_, part),) = context.dataset.action_spec.spans("position")
    axis = dimension - part.start
    return 0 <= axis < part.stop - part.start and any(np.ptp(p[:, axis]) > _MOVED_M for _, p in context.sampled)


def _ranges(context: CheckContext, actions: np.ndarray) -> Iterator[Finding]:
    spec = context.dataset.action_spec
    low, q01, q05, q95, q99, high = np.quantile(actions.astype(np.float64), [0, 0.01, 0.05, 0.95, 0.99, 1], axis=0)
    reach = np.maximum(np.maximum(np.abs(q05), np.abs(q95)), 1e-3)
    wild = [d for d in range(spec.dim) if max(-low[d], high[d]) > _OUTLIER * reach[d] and max(-low[d], high[d]) > 2]
    if wild:
        frames = int((np.abs(actions[:, wild]) > _OUTLIER * reach[wild]).any(1).sum())
        yield Finding(
            "actions",
            "error",
            f"{frames} frames have actions far from all others in {[spec.names[d] for d in wild]}: up to "
            f"{max(max(-low[d], high[d]) for d in wild):.4g}, where 90% lie within {max(reach[d] for d in wild):.4g}",
            "Leave these episodes out, or repair the jumps.",
            {"frames": frames, "dimensions": [spec.names[d] for d in wild]},
        )
    outside = float((np.abs(actions[:, spec.pose]) > 1 + 1e-3).mean())
    of_the_hand = all(group.kind in ("position", "rotation", "gripper") for group in spec.groups)
    if spec.delta and of_the_hand and outside and not wild:
        yield Finding(
            "actions",
            "warning",
            f"{outside:.1%} of the pose actions lie outside [-1, 1], where the controller clips them",
            "Give the unit of the actions in data.features.action_spec, or clip them when they are recorded.",
            {"share_outside": round(outside, 4)},
        )
    for dimension in spec.pose:
        values = actions[:, dimension]
        if q01[dimension] == q99[dimension]:  # it is used in few frames, which `stats` reports
            continue
        at_end = max(
            float((values <= low[dimension] + _STILL).mean()), float((values >= high[dimension] - _STILL).mean())
        )
        if at_end > _SATURATED and np.ptp(values) >= _STILL and (np.abs(values).max() > _STILL):
            yield Finding(
                "actions",
                "warning",
                f"{at_end:.0%} of the actions in {spec.names[dimension]} lie at one end of their range",
                "Check whether the demonstrations were clipped when they were recorded.",
                {"dimension": spec.names[dimension], "share": round(at_end, 3)},
            )


def _repeats(context: CheckContext) -> Iterator[Finding]:
    """Frames that occur twice, and frames whose action does nothing."""
    spec = context.dataset.action_spec
    frames = repeated = idle = 0
    for actions, proprio in context.sampled:
        frames += len(actions)
        same = (actions[1:] == actions[:-1]).all(1) & (proprio[1:] == proprio[:-1]).all(1)
        repeated += int(same.sum())
        if spec.delta:
            idle += len(actions) - len(without_noops(actions, spec))
    if repeated > _REPEATED * frames:
        yield Finding(
            "actions",
            "warning",
            f"{repeated / frames:.0%} of the frames repeat the one before, both action and proprio",
            "Check whether frames were repeated to reach another rate; leave the copies out.",
            {"share_repeated": round(repeated / frames, 3)},
        )
    if idle > _NOOPS * frames:
        yield Finding(
            "actions",
            "warning",
            f"the actions of {idle / frames:.0%} of the frames do nothing",
            "Train with data.drop_noops=true, so that the policy does not learn to stand still.",
            {"share_noops": round(idle / frames, 3)},
        )


def _leaps(context: CheckContext) -> Iterator[Finding]:
    """Numbers of proprio that leap for one frame and come back: a reading that was lost, or is another one's."""
    values = np.concatenate([proprio for _, proprio in context.sampled])
    moves = np.concatenate([np.abs(np.diff(proprio, axis=0)) for _, proprio in context.sampled])  # [frames, P]
    if not len(moves):
        return
    usual = np.quantile(moves, 0.9, axis=0)  # [P]
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    least_leap = np.maximum(_LEAP * usual, np.maximum(_LEAP_OF_RANGE * (high - low), _STILL))  # [P]
    leaping: dict[int, float] = {}
    episodes = 0
    for _, proprio in context.sampled:
        there, back = np.diff(proprio, axis=0)[:-1], np.diff(proprio, axis=0)[1:]  # [T - 2, P]
        least = np.minimum(np.abs(there), np.abs(back))
        leaps = (there * back < 0) & (least > least_leap)
        episodes += bool(leaps.any())
        for dimension in np.flatnonzero(leaps.any(0)).tolist():
            farthest = float(least[leaps[:, dimension], dimension].max())
            leaping[dimension] = max(leaping.get(dimension, 0.0), farthest)
    if leaping:
        worst = max(leaping, key=lambda dimension: leaping[dimension] / least_leap[dimension])
        yield Finding(
            "actions",
            "warning",
            f"proprio leaps for one frame and comes back in {episodes} of {len(context.sampled)} episodes, in the "
            f"numbers {list(leaping)}: number {worst} by up to {leaping[worst]:.3g}, where 90% of the frames move it "
            f"by {usual[worst]:.3g} at most",
            "Look for readings that were lost or mixed up in the recording, and leave these frames out.",
            {"dimensions": {str(dimension): round(value, 5) for dimension, value in leaping.items()}},
        )


def _overview(context: CheckContext, actions: np.ndarray) -> Finding:
    spec = context.dataset.action_spec
    numbers = {
        name: dict(zip(("min", "q01", "mean", "q99", "max"), map(float, np.round(row, 4)), strict=True))
        for name, row in zip(spec.names, _summary(actions).T, strict=True)
    }
    evidence: dict[str, object] = {"frames": len(actions), "dimensions": numbers}
    if context.pictures is not None:
        path = context.pictures / "actions.png"
        draw_histograms(path, actions, spec.names)
        evidence["picture"] = str(path)
    return Finding("actions", "info", f"{len(actions)} actions of {spec.dim} numbers looked at", None, evidence)


def _summary(actions: np.ndarray) -> np.ndarray:
    """[5, A]"""
    values = actions.astype(np.float64)
    return np.stack(
        [values.min(0), np.quantile(values, 0.01, 0), values.mean(0), np.quantile(values, 0.99, 0), values.max(0)]
    )


def count_flips(rotations: np.ndarray) -> int:
    """Count how often axis-angle rotations [T, 3] (rad) jump from one frame to the next, though they turn by little."""
    before, after = rotations[:-1], rotations[1:]
    lengths = np.minimum(np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1))
    jumps = np.linalg.norm(after - before, axis=1)
    return int(((lengths > _NEAR_HALF_TURN) & (jumps > np.pi) & (jumps > 1.2 * lengths)).sum())


def check_rotations(context: CheckContext) -> Iterator[Finding]:
    """Check the rotations of proprio that is LIBERO's, and of actions that are poses to go to."""
    columns: dict[str, list[np.ndarray]] = {}
    if has_libero_proprio(context.dataset):
        columns["proprio's rotation"] = [proprio[:, LIBERO_ROTATION] for _, proprio in context.sampled]
    for group, part in context.dataset.action_spec.spans("rotation"):
        if group.form == "axis_angle" and not group.delta:
            columns[f"the actions' {group.label}"] = [actions[:, part] * group.unit for actions, _ in context.sampled]
    for what, episodes in columns.items():
        flips = [count_flips(rotations) for rotations in episodes]
        jumping = sum(count > 0 for count in flips)
        evidence = {"column": what, "flips": sum(flips), "episodes": jumping}
        if any(flips):
            yield Finding(
                "actions",
                "error",
                f"{what} jumps by a whole turn {sum(flips)} times, in {jumping} of {len(flips)} episodes: axis-angle "
                "flips at 180 degrees",
                "Store rotations without jumps: keep each on the side of the one before, or use rotation_6d.",
                evidence,
                bugs=("rotation_flip",),
            )
        else:
            yield Finding("actions", "info", f"{what} does not jump", None, evidence, bugs=("rotation_flip",))
