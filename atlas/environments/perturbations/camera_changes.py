"""Cameras in another place, or with a wider or narrower field of view."""

from __future__ import annotations

import numpy as np

from atlas.environments.perturbations.perturbation import Perturbation
from atlas.environments.scene_variation import CameraShift, SceneVariation

_AROUND_DEG, _UP_DEG, _DISTANCE, _TURN_DEG = 6.0, 2.5, 0.03, 1.5  # per level
_FIELD = 0.06  # per level


class CameraPose(Perturbation):
    """Per level: moves around the table by 6 degrees, up or down by 2.5 degrees, nearer or farther by 3%, and turns by
    1.5 degrees."""

    category, visual, needs = "camera_viewpoints", True, frozenset({"camera"})

    def variation(self) -> SceneVariation:
        signs = self.rng.choice([-1.0, 1.0], 3)
        axis = self.rng.normal(size=3)
        turn = np.deg2rad(_TURN_DEG) * self.level * axis / np.linalg.norm(axis)
        shift = CameraShift(
            around=float(np.deg2rad(_AROUND_DEG) * self.level * signs[0]),
            up=float(np.deg2rad(_UP_DEG) * self.level * signs[1]),
            distance=float(1 + _DISTANCE * self.level * signs[2]),
            turn=(float(turn[0]), float(turn[1]), float(turn[2])),
        )
        return SceneVariation(camera=shift)


class CameraField(Perturbation):
    """A field of view that is wider or narrower by 6% per level."""

    category, visual, needs = "camera_viewpoints", True, frozenset({"camera"})

    def variation(self) -> SceneVariation:
        factor = (1 + _FIELD) ** (self.level * float(self.rng.choice([-1.0, 1.0])))
        return SceneVariation(camera=CameraShift(field=factor))
