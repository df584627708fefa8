"""Actions and proprio as curves that people can read: in millimetres and degrees, the gripper as P(close)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas.data.episode import EpisodeDataset
from atlas.data.proprio import proprio_names
from atlas.types import ActionSpec

_MARGIN = 0.06  # of a curve's height, above and below


@dataclass(frozen=True)
class Curve:
    """One number over an episode's T frames."""

    name: str
    unit: str
    kind: str  # position, rotation, gripper or state: its colour
    values: np.ndarray  # float64 [T]
    ends: tuple[float, float]  # the least and the most of what is drawn

    @property
    def limits(self) -> tuple[float, float]:
        """A little beyond the ends."""
        low, high = self.ends
        margin = max(_MARGIN * (high - low), 1e-4 * max(abs(low), abs(high)), 1e-6)
        return low - margin, high + margin


def scales(spec: ActionSpec) -> np.ndarray:
    """What the spec's units are multiplied with: float64 [A], to millimetres and degrees. The gripper's is 1."""
    found = np.ones(spec.dim)
    found[slice(*spec.position)] = 1000 * spec.position_unit_m
    if spec.rotation_form == "axis_angle":
        found[slice(*spec.rotation)] = np.rad2deg(spec.rotation_unit_rad)
    return found


def readable(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Actions [..., A] in millimetres and degrees, the gripper as P(close) = (clip(gripper, -1, 1) + 1) / 2."""
    values = actions.astype(np.float64) * scales(spec)
    values[..., spec.gripper] = (np.clip(actions[..., spec.gripper], -1, 1) + 1) / 2
    return values


def action_curves(actions: np.ndarray, predicted: np.ndarray | None, spec: ActionSpec) -> list[Curve]:
    """Of actions [T, A], which leave room for the `predicted` chunks [T, H, A] too; both as `readable` gives them."""
    a_step = " per step" if spec.delta else ""
    curves = []
    for dimension, name in enumerate(spec.names):
        seen = actions[:, dimension]
        if predicted is not None:
            seen = np.concatenate([seen, predicted[:, 0, dimension]])
        kind, unit, ends = "state", "", _ends(seen)
        if dimension == spec.gripper:
            kind, unit, ends = "gripper", "P(close)", (0.0, 1.0)
        elif spec.position[0] <= dimension < spec.position[1]:
            kind, unit = "position", f"mm{a_step}"
        elif spec.rotation[0] <= dimension < spec.rotation[1]:
            kind, unit = "rotation", f"deg{a_step}" if spec.rotation_form == "axis_angle" else ""
        curves.append(Curve(name, unit, kind, actions[:, dimension], ends))
    return curves


def proprio_curves(proprio: np.ndarray, dataset: EpisodeDataset) -> list[Curve]:
    """Of proprio [T, P], by the names that the dataset gives its numbers."""
    kinds = {"m": "position", "rad": "rotation"}
    curves = []
    for (name, unit), values in zip(proprio_names(dataset), proprio.T.astype(np.float64), strict=True):
        kind = "gripper" if name.startswith("finger") else kinds.get(unit, "state")
        curves.append(Curve(name, unit, kind, values, _ends(values)))
    return curves


def commanded_path(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Where the actions [T, A] lead, metres [T, 3] from the first: deltas summed, or the poses to go to."""
    positions = np.zeros((len(actions), 3))
    values = actions[:, slice(*spec.position)].astype(np.float64) * spec.position_unit_m
    positions[:, : values.shape[1]] = np.cumsum(values, axis=0) - values if spec.delta else values
    return positions


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())
