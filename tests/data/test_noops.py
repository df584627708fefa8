"""Which frames do nothing."""

from __future__ import annotations

import numpy as np

from atlas.data.noops import without_noops
from atlas.types import ActionSpec


def test_slow_motion_and_a_gripper_that_changes_do_something() -> None:
    actions = np.zeros((6, 7))
    actions[:, 6] = [-1, -1, 1, 1, 1, 1]
    actions[3, 0] = 2e-4  # slow
    actions[4, 0] = 0.5e-4  # no more than noise
    actions[5, 3:6] = 0.9e-4  # each is small, all together are not

    assert without_noops(actions, ActionSpec()).tolist() == [2, 3, 5]
