"""Other things and other places on the table, and another pose of the robot at the start."""

from __future__ import annotations

import numpy as np

from atlas.environments.perturbations.perturbation import Perturbation
from atlas.environments.scene_variation import Colour, Distractor, SceneVariation, Shape

_INNER_M, _OUTER_M, _APART_M = 0.15, 0.24, 0.08
_BESIDE: tuple[Colour, ...] = (
    (0.1, 0.25, 0.9),
    (0.95, 0.85, 0.1),
    (0.55, 0.1, 0.7),
    (0.95, 0.95, 0.95),
    (0.1, 0.1, 0.1),
)
_RED, _GREEN = (0.75, 0.08, 0.06), (0.1, 0.55, 0.12)  # the training objects' colours, for the fourth and fifth thing
_SHAPES: tuple[Shape, ...] = ("sphere", "cylinder", "box")
_TRAINED_M, _BEYOND_M = 0.10, 0.02  # half the side of the training square; how far each level goes beyond it
_JOINTS, _ARM_RAD = 7, 0.10  # the number of joints; the length of the change in joint angles per level


class Distractors(Perturbation):
    """Other things around the working area, one per level; the fourth is a red ball and the fifth a green one. They are
    seen but not felt."""

    category, visual, needs = "objects_layout", True, frozenset({"distractors"})

    def variation(self) -> SceneVariation:
        places: list[np.ndarray] = []
        things = []
        order = self.rng.permutation(len(_BESIDE))
        for number in range(5):
            place = self._free_place(places)
            places.append(place)
            half, high = (float(value) for value in self.rng.uniform(0.014, 0.028, 2))
            shape, colour = _SHAPES[int(self.rng.integers(3))], _BESIDE[order[number]]
            if number >= 3:
                shape, colour = "sphere", (_RED, _GREEN)[number - 3]
            size = (half, half, half) if shape == "sphere" else (half, half, high)
            things.append(Distractor(shape, size, colour, (float(place[0]), float(place[1]))))
        return SceneVariation(distractors=tuple(things[: self.level]))

    def _free_place(self, others: list[np.ndarray]) -> np.ndarray:
        """A place [2] around the area in which objects lie, away from other distractors."""
        while True:
            place = self.rng.uniform(-_OUTER_M, _OUTER_M, 2)
            if np.abs(place).max() >= _INNER_M and all(np.linalg.norm(place - other) >= _APART_M for other in others):
                return np.asarray(place)


class ObjectPositions(Perturbation):
    """Objects lie outside the training square: level n puts them in the n-th 2 cm wide ring around it."""

    category, needs = "objects_layout", frozenset({"placement"})

    def variation(self) -> SceneVariation:
        outer = _TRAINED_M + _BEYOND_M * self.level
        return SceneVariation(placement=(outer - _BEYOND_M, outer))


class StartPose(Perturbation):
    """The arm starts in another pose: its joint angles [7] differ by a vector whose length is 0.1 rad per level."""

    category, needs = "robot_initial_states", frozenset({"start_pose"})

    def variation(self) -> SceneVariation:
        direction = self.rng.normal(size=_JOINTS)
        offset = _ARM_RAD * self.level * direction / np.linalg.norm(direction)
        return SceneVariation(start_pose=tuple(float(value) for value in offset))
