"""A source's action numbers, turned into Atlas's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlas.config.action_sections import SourceActionsConfig
from atlas.data.hdf5.gripper_values import map_gripper
from atlas.types import LIBERO_GROUPS, ActionGroup, ActionSpec

_LIBERO_POSITION, _LIBERO_ROTATION, _GRIPPER = LIBERO_GROUPS
_SLACK = 0.1  # how far beyond open and closed a gripper's value may lie, as a share of their distance


def action_spec(source: SourceActionsConfig, fps: float, names: Sequence[str] = ()) -> ActionSpec:
    """The ActionSpec of the numbers that `convert` returns: the source's groups unchanged, or position, rotation and
    gripper, with deltas in LIBERO's units. names: of the source's dimensions, if it has any. Raises InputError for
    groups that do not go together."""
    groups = _of_ranges(source) if source.groups is None else _of_groups(source, names)
    return ActionSpec(tuple(groups), source.control_hz or fps)


def _of_groups(source: SourceActionsConfig, names: Sequence[str]) -> list[ActionGroup]:
    called = len(set(names)) == len(names) and all(names)  # otherwise the names do not tell the numbers apart
    groups = []
    for config in source.groups or ():
        own = [names[column] for column in config.span] if called and len(names) > config.span[-1] else None
        label = f"{config.arm}_{config.kind}" if config.arm else config.kind
        made = [label] if config.kind == "gripper" else [f"{label}_{number}" for number in range(len(config.span))]
        groups.append(config.named(config.names or own or made))
    return groups


def _of_ranges(source: SourceActionsConfig) -> list[ActionGroup]:
    axes, d = "xyz"[: _width(source.position)], "d" if source.delta else ""
    units = (
        (_LIBERO_POSITION.unit, _LIBERO_ROTATION.unit)
        if source.delta
        else (source.position_unit_m or 1.0, source.rotation_unit_rad or 1.0)
    )
    groups = [ActionGroup("position", tuple(f"{d}{axis}" for axis in axes), units[0], source.delta)]
    if _width(source.rotation):
        groups.append(ActionGroup("rotation", ("rx", "ry", "rz"), units[1], source.delta, form="axis_angle"))
    return [*groups, _GRIPPER]


def convert(values: np.ndarray, source: SourceActionsConfig) -> np.ndarray:
    """Actions [N, source dimensions] as float32 [N, A] of `action_spec`.

    Groups are left unchanged. With ranges, deltas are scaled to LIBERO's units and target poses keep theirs; the
    gripper is mapped linearly, so that open is -1 and closed is +1.
    """
    if source.groups is not None:
        return values[:, source.columns].astype(np.float32)
    position = values[:, slice(*source.position)] * _scale(source, source.position_unit_m, _LIBERO_POSITION.unit)
    rotation = values[:, slice(*source.rotation)] * _scale(source, source.rotation_unit_rad, _LIBERO_ROTATION.unit)
    grip = values[:, [source.gripper]]
    grip = map_gripper(grip, source.gripper_open, source.gripper_closed)
    return np.concatenate([position, rotation, grip], axis=1).astype(np.float32)


def gripper_fits(told: np.ndarray, gripper: ActionGroup, slack: float = _SLACK) -> bool:
    """Whether a gripper's values [N] lie between open and closed, or at most `slack` of their distance beyond."""
    return bool((np.abs(map_gripper(told, gripper.open, gripper.closed)) <= 1 + 2 * slack).all())


def describe(source: SourceActionsConfig, spec: ActionSpec) -> str:
    """How the numbers are turned into those of `spec`, for the log."""
    if source.groups is not None:
        return f"{spec.describe()}; used unchanged"
    kind = "deltas" if source.delta else "target poses"
    libero = (_LIBERO_POSITION.unit, _LIBERO_ROTATION.unit)
    assumed = libero if source.delta else (1.0, 1.0)
    unit, turn = source.position_unit_m or assumed[0], source.rotation_unit_rad or assumed[1]
    parts = [f"position {list(source.position)} (1 = {unit:g} m)"]
    if _width(source.rotation):
        parts.append(f"axis-angle {list(source.rotation)} (1 = {turn:g} rad)")
    parts.append(f"gripper {source.gripper} ({source.gripper_open:g} open, {source.gripper_closed:g} closed)")
    scaled = source.delta and (unit, turn) != libero
    changes = []
    if scaled:
        changes.append(f"scaled to 1 = {libero[0]:g} m and {libero[1]:g} rad")
    if (source.gripper_open, source.gripper_closed) != (-1.0, 1.0):
        changes.append("the gripper mapped to -1 open, 1 closed")
    return f"{kind} at {spec.control_hz:g} Hz, {', '.join(parts)}; {' and '.join(changes) or 'used unchanged'}"


def _width(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _scale(source: SourceActionsConfig, unit: float | None, libero: float) -> float:
    return unit / libero if source.delta and unit is not None else 1.0
