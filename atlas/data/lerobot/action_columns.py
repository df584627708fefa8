"""A source's action numbers, turned into Atlas's."""

from __future__ import annotations

import numpy as np

from atlas.config.data_sections import SourceActionsConfig
from atlas.data.hdf5.gripper_values import map_gripper
from atlas.types import ActionSpec

_LIBERO = ActionSpec()
_SLACK = 0.1  # how far beyond open and closed a gripper's value may lie


def action_spec(source: SourceActionsConfig, fps: float) -> ActionSpec:
    """The ActionSpec of the numbers that `convert` gives: position, rotation, gripper; deltas in LIBERO's units."""
    axes = "xyz"[: _width(source.position)]
    names = [*axes, *(f"r{axis}" for axis in "xyz"[: _width(source.rotation)])]
    if source.delta:
        names = [name if name.startswith("r") else f"d{name}" for name in names]
    rotation_end = len(names)
    return ActionSpec(
        names=(*names, "gripper"),
        position=(0, len(axes)),
        rotation=(len(axes), rotation_end),
        gripper=rotation_end,
        position_unit_m=_LIBERO.position_unit_m if source.delta else source.position_unit_m or 1.0,
        rotation_unit_rad=_LIBERO.rotation_unit_rad if source.delta else source.rotation_unit_rad or 1.0,
        delta=source.delta,
        control_hz=source.control_hz or fps,
    )


def convert(values: np.ndarray, source: SourceActionsConfig) -> np.ndarray:
    """Actions [N, source dimensions] as float32 [N, A] of `action_spec`.

    Deltas are scaled to LIBERO's units, poses to go to keep theirs; the gripper is mapped linearly, so that open
    is -1 and closed is +1.
    """
    position = values[:, slice(*source.position)] * _scale(source, source.position_unit_m, _LIBERO.position_unit_m)
    rotation = values[:, slice(*source.rotation)] * _scale(source, source.rotation_unit_rad, _LIBERO.rotation_unit_rad)
    grip = values[:, [source.gripper]]
    grip = map_gripper(grip, source.gripper_open, source.gripper_closed)
    return np.concatenate([position, rotation, grip], axis=1).astype(np.float32)


def gripper_fits(converted: np.ndarray, spec: ActionSpec) -> bool:
    """Whether the gripper's values lie between open and closed, or near."""
    return bool((np.abs(converted[:, spec.gripper]) <= 1 + 2 * _SLACK).all())


def describe(source: SourceActionsConfig, fps: float) -> str:
    """How the numbers are turned into Atlas's, for the log."""
    spec = action_spec(source, fps)
    kind = "deltas" if source.delta else "poses to go to"
    unit = source.position_unit_m or spec.position_unit_m
    turn = source.rotation_unit_rad or spec.rotation_unit_rad
    parts = [f"position {list(source.position)} (1 = {unit:g} m)"]
    if _width(source.rotation):
        parts.append(f"axis-angle {list(source.rotation)} (1 = {turn:g} rad)")
    parts.append(f"gripper {source.gripper} ({source.gripper_open:g} open, {source.gripper_closed:g} closed)")
    scaled = source.delta and (unit, turn) != (_LIBERO.position_unit_m, _LIBERO.rotation_unit_rad)
    changes = []
    if scaled:
        changes.append(f"scaled to 1 = {_LIBERO.position_unit_m:g} m and {_LIBERO.rotation_unit_rad:g} rad")
    if (source.gripper_open, source.gripper_closed) != (-1.0, 1.0):
        changes.append("the gripper mapped to -1 open, 1 closed")
    return f"{kind} at {spec.control_hz:g} Hz, {', '.join(parts)}; {' and '.join(changes) or 'taken as they are'}"


def _width(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _scale(source: SourceActionsConfig, unit: float | None, libero: float) -> float:
    return unit / libero if source.delta and unit is not None else 1.0
