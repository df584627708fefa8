"""Finds what a simulated robot touches, from MuJoCo's contacts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class RobotContacts:
    """Contacts between a robot's bodies and all others, which are named by their outermost body."""

    def __init__(self, model: Any, data: Any, robot: str, names: Mapping[int, str], scene: str) -> None:
        """robot: its outermost body. names: {an outermost body's number: its name}; all others are named `scene`."""
        self._model, self._data = model, data
        self._root_of = np.asarray(model.body_rootid)[np.asarray(model.geom_bodyid)]  # [geoms]
        self._robot, self._names, self._scene = int(model.body(robot).id), dict(names), scene

    def forces(self) -> dict[str, float]:
        """{name of a thing touched in the current state: the sum of the contacts' normal forces, N}."""
        import mujoco

        found: dict[str, float] = {}
        if not self._data.ncon:
            return found
        roots = self._root_of[np.asarray(self._data.contact.geom)]  # [contacts, 2]
        of_robot = roots == self._robot
        force = np.zeros(6)
        for number in np.flatnonzero(of_robot[:, 0] != of_robot[:, 1]):
            other = int(roots[number][~of_robot[number]][0])
            mujoco.mj_contactForce(self._model, self._data, int(number), force)
            name = self._names.get(other, self._scene)
            found[name] = found.get(name, 0.0) + abs(float(force[0]))
        return found
