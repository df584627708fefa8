"""A source's action numbers, turned into Atlas's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from atlas.config.action_sections import SourceActionsConfig, SourceGroupConfig, StateRotationConfig
from atlas.data.hdf5.gripper_values import map_gripper
from atlas.rotations import from_quaternion, nearest_half, path_signs, to_quaternion, unwrapped
from atlas.types import LIBERO_GROUPS, ActionGroup, ActionSpec, RotationForm

_LIBERO_POSITION, _LIBERO_ROTATION, _GRIPPER = LIBERO_GROUPS
_STILL = 1e-6  # rad: a rotation by less has no axis
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
        told = called and len(names) > config.span[-1] and config.width == len(config.span)
        own = [names[column] for column in config.span] if told else None
        label = f"{config.arm}_{config.kind}" if config.arm else config.kind
        made = [label] if config.kind == "gripper" else [f"{label}_{number}" for number in range(config.width)]
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


def convert(values: np.ndarray, source: SourceActionsConfig, episodes: Sequence[slice] = ()) -> np.ndarray:
    """Actions [N, source dimensions] as float32 [N, A] of `action_spec`. episodes: their rows; () takes all for one.

    Groups are left unchanged, except for rotations that are converted. With ranges, deltas are scaled to LIBERO's units
    and target poses keep theirs; the gripper is mapped linearly, so that open is -1 and closed is +1. Rotations to go
    to do not jump: quaternions keep their sign, and axis-angles and Euler angles pass half a turn without a leap.
    """
    rows = episodes or [slice(0, len(values))]
    if source.groups is not None:
        return np.concatenate([_group(values, group, rows) for group in source.groups], axis=1).astype(np.float32)
    position = values[:, slice(*source.position)] * _scale(source, source.position_unit_m, _LIBERO_POSITION.unit)
    rotation = values[:, slice(*source.rotation)] * _scale(source, source.rotation_unit_rad, _LIBERO_ROTATION.unit)
    if not source.delta and _width(source.rotation):
        rotation = without_jumps(rotation, "axis_angle", source.rotation_unit_rad or 1.0, rows)
    grip = values[:, [source.gripper]]
    grip = map_gripper(grip, source.gripper_open, source.gripper_closed)
    return np.concatenate([position, rotation, grip], axis=1).astype(np.float32)


def convert_state(
    values: np.ndarray, rotations: Sequence[StateRotationConfig], episodes: Sequence[slice] = ()
) -> np.ndarray:
    """States [N, source dimensions] as float32 [N, P], with these rotations, which are in the order of their columns,
    in the forms that they are read into, as `convert` reads those of targets."""
    rows, parts, place = episodes or [slice(0, len(values))], [], 0
    for rotation in rotations:
        parts += [values[:, place : rotation.columns[0]], _group(values, rotation.group, rows)]
        place = rotation.columns[1]
    return np.concatenate([*parts, values[:, place:]], axis=1).astype(np.float32)


def state_names(names: Sequence[str], rotations: Sequence[StateRotationConfig]) -> list[str]:
    """The names of the numbers of `convert_state`. names: of all of the source's dimensions."""
    found, place = [], 0
    for number, rotation in enumerate(rotations):
        label = "rotation" if len(rotations) == 1 else f"rotation_{number}"
        group = rotation.group
        own = list(names[rotation.columns[0] : rotation.columns[1]]) if not group.converts else None
        made = [f"{label}_{axis}" for axis in range(group.width)]
        found += [*names[place : rotation.columns[0]], *(rotation.names or own or made)]
        place = rotation.columns[1]
    return [*found, *names[place:]]


def source_column(source: SourceActionsConfig, dimension: int) -> int:
    """The source's dimension that a number of an action, which is not a rotation's, is read from."""
    if source.groups is None:
        return source.columns[dimension]
    for group in source.groups:
        if dimension < group.width:
            return group.span[dimension]
        dimension -= group.width
    raise AssertionError(f"there is no such dimension: {dimension}")


def _group(values: np.ndarray, group: SourceGroupConfig, episodes: Sequence[slice]) -> np.ndarray:
    own = values[:, list(group.span)]
    if group.form is None or group.target is None:
        return own
    if not group.converts:
        return own if group.delta else without_jumps(own, group.target, group.unit, episodes)
    quaternions = to_quaternion(torch.from_numpy(own.astype(np.float64)) * group.unit, group.form)
    signs = path_signs(quaternions, episodes) if not group.delta else 1.0
    near = nearest_half(quaternions) if group.delta else quaternions
    found = from_quaternion(near * signs, group.target)
    if group.target == "euler_xyz" and not group.delta:
        found = unwrapped(found, episodes)
    return found.numpy()


def without_jumps(values: np.ndarray, form: RotationForm, unit: float, episodes: Sequence[slice]) -> np.ndarray:
    """Rotations [N, n] to go to, the same ones, so that each episode's follow one another without a jump and all begin
    on the same side. Those that do not have to change stay as they are, to the bit."""
    if form == "rotation_6d":
        return values
    own = torch.from_numpy(values.astype(np.float64))
    angles = own if form == "quaternion" else own * unit
    if form == "euler_xyz":
        moved = unwrapped(angles, episodes)
    else:
        opposite = path_signs(to_quaternion(angles, form), episodes) < 0
        length = angles.norm(dim=-1, keepdim=True)
        other = -angles if form == "quaternion" else angles * (1 - 2 * math.pi / length.clamp(min=_STILL))
        moved = torch.where(opposite & ((length > _STILL) | (form == "quaternion")), other, angles)
    changed = (moved != angles).any(-1).numpy()
    found = values.copy()
    found[changed] = (moved.numpy() / (1.0 if form == "quaternion" else unit))[changed]
    return found


def gripper_fits(told: np.ndarray, gripper: ActionGroup, slack: float = _SLACK) -> bool:
    """Whether a gripper's values [N] lie between open and closed, or at most `slack` of their distance beyond."""
    return bool((np.abs(map_gripper(told, gripper.open, gripper.closed)) <= 1 + 2 * slack).all())


def describe(source: SourceActionsConfig, spec: ActionSpec) -> str:
    """Describe how the numbers are turned into those of `spec`, for the log."""
    if source.groups is not None:
        turned = [f"{group.form} read as {group.target}" for group in source.groups if group.converts]
        return f"{spec.describe()}; {', '.join(turned) or 'used unchanged'}"
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
