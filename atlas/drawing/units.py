"""Actions as people read them: millimetres, degrees and P(close), and the path that they command in metres."""

from __future__ import annotations

import numpy as np

from atlas.drawing.figures import Panel
from atlas.types import ActionSpec


def panels(spec: ActionSpec, smallest: np.ndarray, largest: np.ndarray) -> list[Panel]:
    """A panel for each dimension of an action. smallest, largest: float [A], of the recorded actions in the spec's
    units; the limits lie a little beyond."""
    a_step = " per step" if spec.delta else ""
    units = [""] * spec.dim
    units[slice(*spec.position)] = [f"mm{a_step}"] * (spec.position[1] - spec.position[0])
    if spec.rotation_form == "axis_angle":
        units[slice(*spec.rotation)] = [f"deg{a_step}"] * (spec.rotation[1] - spec.rotation[0])
    units[spec.gripper] = "P(close)"
    low, high = readable(np.stack([smallest, largest]), spec).astype(np.float64)
    low[spec.gripper], high[spec.gripper] = 0.0, 1.0
    margin = np.maximum(0.06 * (high - low), 1e-6)
    limits = zip((low - margin).tolist(), (high + margin).tolist(), strict=True)
    return [Panel(name, unit, limit) for name, unit, limit in zip(spec.names, units, limits, strict=True)]


def readable(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Actions float [..., A] of the spec's units in those of `panels`: the gripper becomes P(close) in [0, 1]."""
    values = np.array(actions)
    values[..., slice(*spec.position)] *= 1000 * spec.position_unit_m
    if spec.rotation_form == "axis_angle":
        values[..., slice(*spec.rotation)] *= np.rad2deg(spec.rotation_unit_rad)
    values[..., spec.gripper] = (np.clip(values[..., spec.gripper], -1, 1) + 1) / 2
    return values


def commanded_path(actions: np.ndarray, spec: ActionSpec, start: np.ndarray | None = None) -> np.ndarray:
    """Where the position part of a chunk [H, A] leads, in metres: float [H + 1, D] from the origin for deltas, which
    are summed; float [H, D] from `start` [A] for absolute targets (default: from the chunk's first)."""
    positions = actions[:, slice(*spec.position)].astype(np.float64) * spec.position_unit_m
    if spec.delta:
        return np.concatenate([np.zeros_like(positions[:1]), positions.cumsum(0)])
    first = positions[0] if start is None else start[slice(*spec.position)] * spec.position_unit_m
    return positions - first
