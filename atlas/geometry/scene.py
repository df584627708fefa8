"""VGGT's output for a scene: cameras, depth and confidence of all views in one world, and the points they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scene:
    """S views of H x W pixels. Lengths are in the scene's own unit: VGGT knows no metres.

    The world's axes are the first camera's (OpenCV: x right, y down, z forward).
    """

    colours: np.ndarray  # uint8 [S, H, W, 3]
    depth: np.ndarray  # float32 [S, H, W], along the camera's axis
    confidence: np.ndarray  # float32 [S, H, W], above 1
    visible: np.ndarray  # bool [S, H, W]: the picture, without padding, where depth and confidence are finite
    extrinsics: np.ndarray  # float64 [S, 3, 4], from the world to the camera
    intrinsics: np.ndarray  # float64 [S, 3, 3], in pixels

    @property
    def positions(self) -> np.ndarray:
        """The positions of the cameras in the world: float64 [S, 3]."""
        rotation, translation = self.extrinsics[:, :, :3], self.extrinsics[:, :, 3]
        return 0.0 - np.einsum("sji,sj->si", rotation, translation)  # 0.0 - x, so that the first is not at -0

    @property
    def fields_of_view(self) -> np.ndarray:
        """float64 [S, 2]: horizontal and vertical, in degrees."""
        height, width = self.depth.shape[1:]
        slopes = np.stack((width / 2 / self.intrinsics[:, 0, 0], height / 2 / self.intrinsics[:, 1, 1]), axis=-1)
        return np.degrees(2 * np.arctan(slopes)) % 360  # a negative focal length is a field beyond 180 degrees

    def to_world(self, view: int, points: np.ndarray) -> np.ndarray:
        """Points [..., 3], from a camera's axes to the world's."""
        rotation, translation = self.extrinsics[view, :, :3], self.extrinsics[view, :, 3]
        return (points - translation) @ rotation

    def confidence_threshold(self, share: float) -> float:
        """The confidence that this share of all visible pixels reaches; infinite if none is visible."""
        seen = self.confidence[self.visible]
        return float(np.quantile(seen, 1 - share)) if seen.size else np.inf

    def points(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """All visible pixels with at least this confidence, as points in the world.

        Returns positions float32 [N, 3] and colours uint8 [N, 3], view by view. Points too far for float32 are left
        out.
        """
        height, width = self.depth.shape[1:]
        v, u = np.mgrid[:height, :width] + 0.5  # the centres of the pixels
        positions, colours = [], []
        for view, k in enumerate(self.intrinsics):
            kept = self.visible[view] & (self.confidence[view] >= threshold)
            z = self.depth[view][kept].astype(np.float64)
            x, y = (u[kept] - k[0, 2]) / k[0, 0] * z, (v[kept] - k[1, 2]) / k[1, 1] * z
            with np.errstate(over="ignore"):
                found = self.to_world(view, np.stack((x, y, z), axis=-1)).astype(np.float32)
            near = np.isfinite(found).all(axis=1)
            positions.append(found[near])
            colours.append(self.colours[view][kept][near])
        return np.concatenate(positions), np.concatenate(colours)


def seen_from_first(extrinsics: np.ndarray) -> np.ndarray:
    """Extrinsics [S, 3, 4] with the world moved into the first camera, which VGGT's own world is close to."""
    rotation, translation = extrinsics[:, :, :3], extrinsics[:, :, 3:]
    turned = rotation @ rotation[0].T
    moved = np.concatenate((turned, translation - turned @ translation[0]), axis=-1)
    moved[0] = np.eye(3, 4)  # exactly, without rounding
    return moved
