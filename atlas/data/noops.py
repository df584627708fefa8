"""Frames whose action does nothing, which the better recipes leave out."""

from __future__ import annotations

import numpy as np

from atlas.types import ActionSpec

_STILL = 1e-4


def without_noops(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """The frames, int64, whose action moves (norm of the pose at least 1e-4) or changes the gripper.

    actions: float [T, A] of one episode, deltas.
    """
    still = np.linalg.norm(actions[:, spec.pose], axis=1) < _STILL
    same_gripper = np.concatenate([[True], actions[1:, spec.gripper] == actions[:-1, spec.gripper]])
    return np.flatnonzero(~(still & same_gripper))
