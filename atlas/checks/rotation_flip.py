"""Axis-angle rotations that jump by a whole turn: near 180 degrees an axis and its opposite mean almost the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.data.proprio import has_libero_proprio

LIBERO_ROTATION = slice(3, 6)  # of LIBERO's proprio
_NEAR_HALF_TURN = 0.7 * np.pi  # from which length of a rotation on its opposite is near


def count_flips(rotations: np.ndarray) -> int:
    """How often axis-angle rotations [T, 3] (rad) jump from one frame to the next, though they turn by little."""
    before, after = rotations[:-1], rotations[1:]
    lengths = np.minimum(np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1))
    jumps = np.linalg.norm(after - before, axis=1)
    return int(((lengths > _NEAR_HALF_TURN) & (jumps > np.pi) & (jumps > 1.2 * lengths)).sum())


def check_rotations(context: CheckContext) -> Iterator[Finding]:
    """Of proprio that is LIBERO's, and of actions that are poses to go to."""
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
