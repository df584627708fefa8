"""Actions and proprio as readable curves: in millimetres and degrees, grippers as P(close)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas.data.episode import EpisodeDataset
from atlas.data.proprio import proprio_names
from atlas.drawing.figures import Panel
from atlas.types import ActionSpec

_MARGIN = 0.06  # of a curve's height, above and below
_SHOWN_AS = {"joints": "rotation", "base": "position", "other": "state"}  # kinds without their own colour


@dataclass(frozen=True)
class Curve:
    """One number over an episode's T frames."""

    name: str
    unit: str
    kind: str  # position, rotation, gripper or state: its colour
    values: np.ndarray  # float64 [T]
    ends: tuple[float, float]  # the smallest and largest drawn value

    @property
    def limits(self) -> tuple[float, float]:
        """A little beyond the ends."""
        low, high = self.ends
        margin = max(_MARGIN * (high - low), 1e-4 * max(abs(low), abs(high)), 1e-6)
        return low - margin, high + margin


def action_curves(actions: np.ndarray, predicted: np.ndarray | None, spec: ActionSpec) -> list[Curve]:
    """Curves of actions [T, A] that also leave room for the `predicted` chunks [T, H, A]; both as from `readable`."""
    curves = []
    for group, part in spec.spans():
        for name, dimension in zip(group.names, range(part.start, part.stop), strict=True):
            shown = actions[:, dimension]
            if predicted is not None:
                shown = np.concatenate([shown, predicted[:, 0, dimension]])
            ends = (0.0, 1.0) if group.kind == "gripper" else _ends(shown)
            kind = _SHOWN_AS.get(group.kind, group.kind)
            curves.append(Curve(name, group.readable[1], kind, actions[:, dimension], ends))
    return curves


def panels(spec: ActionSpec, smallest: np.ndarray, largest: np.ndarray) -> list[Panel]:
    """A panel for each dimension of an action. smallest, largest: float [A], of the recorded actions in the spec's
    units; the limits lie a little beyond."""
    ends = spec.readable(np.stack([smallest, largest]))
    for dimension, _ in spec.grippers:
        ends[:, dimension] = 0.0, 1.0
    margin = np.maximum(_MARGIN * (ends[1] - ends[0]), 1e-6)
    limits = zip((ends[0] - margin).tolist(), (ends[1] + margin).tolist(), strict=True)
    return [Panel(name, unit, limit) for name, unit, limit in zip(spec.names, spec.readable_units, limits, strict=True)]


def proprio_curves(proprio: np.ndarray, dataset: EpisodeDataset) -> list[Curve]:
    """Curves of proprio [T, P], with the dataset's names for its numbers."""
    kinds = {"m": "position", "rad": "rotation"}
    groups = {name: group for group in dataset.action_spec.groups for name in group.names if not group.delta}
    curves = []
    for (name, unit), values in zip(proprio_names(dataset), proprio.T.astype(np.float64), strict=True):
        kind = "gripper" if name.startswith("finger") else kinds.get(unit, "state")
        group = None if unit else groups.get(name)
        if group is not None:  # it has the name of an absolute action, and that action's unit
            unit, kind = group.readable[1], _SHOWN_AS.get(group.kind, group.kind)
            unit = "share closed" if group.kind == "gripper" else unit
            values = group.closed_share(values) if group.kind == "gripper" else values * group.readable[0]
        curves.append(Curve(name, unit, kind, values, _ends(values)))
    return curves


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())
