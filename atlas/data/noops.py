"""Frames whose action does nothing, which good recipes leave out."""

from __future__ import annotations

import numpy as np

from atlas.types import ActionSpec

_STILL = 1e-4


def without_noops(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """The frames, int64, whose action moves (the norm of its pose is at least 1e-4) or changes a gripper.

    actions: float [T, A] of one episode, deltas.
    """
    still = np.linalg.norm(actions[:, spec.pose], axis=1) < _STILL
    grippers = actions[:, [dimension for dimension, _ in spec.grippers]]
    same_grippers = np.concatenate([[True], (grippers[1:] == grippers[:-1]).all(1)])
    return np.flatnonzero(~(still & same_grippers))
