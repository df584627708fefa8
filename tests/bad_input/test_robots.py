"""Action spaces, histories and relative actions that cannot be meant: exit 2 with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.table import SMALL, refused
from tests.conftest import MakeOnce
from tests.robots import ROBOTS, write_robot

SPEC = "data.features.action_spec"
JOINTS = "{kind: joints, columns: [0, 5]}"
GRIPPER = "{kind: gripper, columns: 5, open: 100, closed: 0, continuous: true}"
ROWS = {
    "groups overlap": ([f"{SPEC}={{groups: [{JOINTS}, {{kind: other, columns: [4, 6]}}]}}"], "the column 4"),
    "a column that is not there": (
        [f"{SPEC}={{groups: [{{kind: joints, columns: [0, 7]}}]}}"],
        "has 6 (shoulder_pan.pos",
    ),
    "a gripper that is always open": (
        [f"{SPEC}={{groups: [{JOINTS}, {{kind: gripper, columns: 5, open: 1, closed: 1}}]}}"],
        "both 1, and must differ",
    ),
    "a gripper in another range": (
        [f"{SPEC}={{groups: [{JOINTS}, {{kind: gripper, columns: 5, open: 1, closed: 0}}]}}"],
        "lies within [",
    ),
    "an action that is not there": (["data.features.action=actoin"], "Did you mean 'action'?"),
    "one of several actions that is not there": (["data.features.action=[action, hand]"], "no feature 'hand'"),
    "a rotation without its convention": (
        [f"{SPEC}={{groups: [{{kind: rotation, columns: [0, 3], form: euler}}, {GRIPPER}]}}"],
        "'euler_XYZ'",
    ),
    "a matrix of four numbers": (
        [f"{SPEC}={{groups: [{{kind: rotation, columns: [0, 4], form: matrix}}]}}"],
        "matrix has 9 numbers",
    ),
    "percent of a gripper": (
        [f"{SPEC}={{groups: [{JOINTS}, {{kind: gripper, columns: 5, open: 1, closed: 0, percent: true}}]}}"],
        "percent of gripper is True, which is for joints",
    ),
    "a history of nothing": (["data.history.steps=0"], "data.history.steps"),
    "a history that is too long": (["data.history={steps: 40}"], "less than or equal to 16"),
    "a history with frames left out": (
        ["data.history.steps=2", "data.drop_noops=true"],
        "drop_noops leaves frames out",
    ),
    "relative to what is not there": (
        ["model.processor.relative_actions=true", "model.processor.relative_to=[0, 1, 2, 3, 9]"],
        "need 5 different dimensions of the proprio",
    ),
    "relative to, but not relative": (["model.processor.relative_to=[0]"], "relative_actions is false"),
    "sub-tasks that are not there": (["data.features.instruction=subtask"], "no feature 'subtask_index'"),
    "an instruction for those that have one": (["data.instruction=tidy up"], "has its own instructions"),
}


@pytest.mark.parametrize("name", ROWS)
def test_it_is_refused_before_anything_begins(name: str, tmp_path: Path, make_once: MakeOnce) -> None:
    robot = make_once("robot_so100", lambda folder: write_robot(folder, ROBOTS["so100"]))
    settings, said = ROWS[name]

    refused(tmp_path, ["train", "--cpu", f"data.path={robot}", *SMALL, *settings], said)
