"""The hand's path in a fixed camera's picture, for episodes that include their simulator's model."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlas.data.episode import Episode
from atlas.environments.model_variation import rotation_matrix
from atlas.types import ActionSpec

_DEFAULT_FOVY_DEG = 45.0  # MuJoCo's
_KNOWN_ATTRIBUTES = {"name", "mode", "pos", "quat", "fovy"}
_LEAST_CORRELATION = 0.7
_SENSIBLE_FOLLOWING = (0.02, 1.5)


@dataclass(frozen=True)
class FixedCamera:
    """A camera that does not move: MuJoCo's, which looks along its own -z with x to the right and y up."""

    position: np.ndarray  # float64 [3], m, in the world's frame
    rotation: np.ndarray  # float64 [3, 3], its axes as columns
    fovy_deg: float  # the vertical field of view

    def project(self, points: np.ndarray, height: int, width: int) -> np.ndarray | None:
        """Pixels (right, down) [n, 2] of points [n, 3] (m, world) in a picture; None if one lies behind the camera."""
        right, up, back = ((points - self.position) @ self.rotation).T
        if (back > -1e-3).any():
            return None
        focal = height / 2 / np.tan(np.deg2rad(self.fovy_deg) / 2)
        return np.stack([width / 2 - focal * right / back, height / 2 + focal * up / back], axis=1)


def find_camera(model_xml: str | None, name: str) -> FixedCamera | None:
    """A camera of a MuJoCo model by name; None if there is none that is fixed in the world and described only by its
    position, quaternion and field of view."""
    if model_xml is None:
        return None
    try:
        root = ElementTree.fromstring(model_xml)
    except ElementTree.ParseError:
        return None
    camera = root.find(f"worldbody/camera[@name='{name}']")
    if camera is None or root.find("default//camera") is not None or set(camera.attrib) - _KNOWN_ATTRIBUTES:
        return None
    if camera.get("mode", "fixed") != "fixed":
        return None
    position = np.array(camera.get("pos", "0 0 0").split(), np.float64)
    quaternion = np.array(camera.get("quat", "1 0 0 0").split(), np.float64)
    return FixedCamera(position, rotation_matrix(quaternion), float(camera.get("fovy", _DEFAULT_FOVY_DEG)))


def following(episodes: Sequence[Episode], spec: ActionSpec, horizon: int) -> float | None:
    """The share of a commanded path that the hand moves: the least-squares factor over all chunks of `horizon` actions.

    An arm is still on its way when the next command comes, so this is well below 1. None if the first three numbers of
    proprio do not move with the commands, and hence are not the hand's position (m) in their frame.
    """
    positions = spec.spans("position")
    if len(positions) != 1 or not positions[0][0].delta or len(positions[0][0].names) != 3:
        return None
    (group, part), *_ = positions
    commanded, moved = [], []
    for episode in episodes:
        if len(episode) > horizon:
            path = np.concatenate([np.zeros((1, 3)), episode.actions[:, part].cumsum(0)])
            commanded.append((path[horizon:-1] - path[: -horizon - 1]) * group.unit)
            moved.append(episode.proprio[horizon:, :3] - episode.proprio[:-horizon, :3])
    if not commanded or moved[0].shape[1] != 3:
        return None
    a, b = np.concatenate(commanded).astype(np.float64), np.concatenate(moved).astype(np.float64)
    scale = (a * a).sum() * (b * b).sum()
    if not scale or (a * b).sum() / np.sqrt(scale) < _LEAST_CORRELATION:
        return None
    factor = float((a * b).sum() / (a * a).sum())
    return factor if _SENSIBLE_FOLLOWING[0] < factor < _SENSIBLE_FOLLOWING[1] else None
