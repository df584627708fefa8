"""Robots that people own are known by LeRobot's names for their motors; anything else is asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from atlas.checks.inspection import inspect_dataset
from atlas.config.data_sections import FeaturesConfig
from atlas.data.formats import open_dataset
from atlas.data.proprio import proprio_names
from atlas.errors import InputError
from tests.conftest import MakeOnce
from tests.data.lerobot_folders import edit_feature, edit_info
from tests.robots import ROBOTS, write_robot

DEGREE = math.pi / 180


@pytest.fixture
def robot(make_once: MakeOnce, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a robot's recording, to be changed."""
    import shutil

    def copied(name: str) -> Path:
        made = make_once(f"robot_{name}", lambda folder: write_robot(folder, ROBOTS[name]))
        return Path(shutil.copytree(made, tmp_path / name))

    return copied


def kinds(folder: Path, **features: Any) -> list[str]:
    spec = open_dataset(folder, features=FeaturesConfig(**features) if features else None).action_spec
    return [f"{group.label} {len(group.names)}" for group in spec.groups]


@pytest.mark.parametrize(
    ("name", "groups", "joints"),
    [
        ("so100", ["joints 5", "gripper 1"], {"percent": True}),
        ("so101_degrees", ["joints 5", "gripper 1"], {"unit": DEGREE}),
        ("koch_old", ["joints 5", "gripper 1"], {"unit": DEGREE}),
        (
            "bi_so100",
            ["left joints 5", "left gripper 1", "right joints 5", "right gripper 1"],
            {"percent": True},
        ),
        ("aloha", ["left joints 6", "left gripper 1", "right joints 6", "right gripper 1"], {"unit": 1.0}),
        ("droid", ["joints 7", "gripper 1"], {"unit": 1.0}),
        ("lekiwi", ["joints 5", "gripper 1", "base 2", "base 1"], {"percent": True}),
    ],
)
def test_a_robot_is_known_by_its_names(
    name: str,
    groups: list[str],
    joints: dict[str, Any],
    robot: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        dataset = open_dataset(robot(name))
    found = inspect_dataset(dataset)

    spec = dataset.action_spec
    assert [f"{group.label} {len(group.names)}" for group in spec.groups] == groups
    assert spec.names == tuple(ROBOTS[name].names) and spec.control_hz == ROBOTS[name].hz
    first, gripper = spec.groups[:2]
    assert {key: getattr(first, key) for key in joints} == joints and not first.delta
    ends = {"droid": (0, 1), "aloha": (1, 0)}.get(name, (100, 0))
    assert (gripper.open, gripper.closed) == ends and gripper.continuous
    assert any("by their names" in note for note in found["read_as"])
    assert all(note in caplog.text for note in found["read_as"][:3])
    assert found["proprio_names"] == list(ROBOTS[name].names)
    assert found["warnings"] == []
    if name == "lekiwi":
        assert [group.unit for group in spec.groups[2:]] == [1.0, pytest.approx(DEGREE)]


def test_what_a_dataset_does_not_settle_is_said_with_what_to_paste(
    robot: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = robot("so100")

    open_dataset(folder)

    said = next(record.getMessage() for record in caplog.records if "may also be degrees" in record.getMessage())
    pasted = yaml.safe_load(said[said.index("data:") :])["data"]["features"]
    assert open_dataset(folder, features=FeaturesConfig(**pasted)).action_spec.groups[0].unit == pytest.approx(DEGREE)


def test_unnamed_numbers_are_known_by_the_type_of_the_robot(robot: Callable[[str], Path]) -> None:
    folder = robot("aloha")
    edit_feature(folder, "action", names={"motors": [f"motor_{i}" for i in range(14)]})

    assert kinds(folder)[2:] == ["right joints 6", "right gripper 1"]

    edit_info(folder, robot_type="two_arms")
    with pytest.raises(InputError, match="has 14 numbers"):
        open_dataset(folder)


def test_columns_are_joined(robot: Callable[[str], Path]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = robot("droid")
    (path,) = (folder / "data").rglob("*.parquet")
    table = pq.read_table(path)
    actions = [row.as_py() for row in table.column("action")]
    table = table.append_column("action.joint_position", pa.array([row[:7] for row in actions]))
    pq.write_table(table.append_column("action.gripper_position", pa.array([row[7] for row in actions])), path)
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features |= {
        "action.joint_position": {"dtype": "float32", "shape": [7], "names": None},
        "action.gripper_position": {"dtype": "float32", "shape": [1], "names": None},
    }
    edit_info(folder, features=features)
    whole = open_dataset(folder)

    parts = open_dataset(folder, features=FeaturesConfig(action=["action.joint_position", "action.gripper_position"]))

    assert [group.kind for group in parts.action_spec.groups] == ["joints", "gripper"]
    assert (parts.numbers().actions == whole.numbers().actions).all()
    assert parts.action_spec.names[0] == "joint_position_0"


def test_a_rotation_of_the_state_is_read_in_another_form(robot: Callable[[str], Path]) -> None:
    """Of seven joints and a gripper, four numbers are taken for a quaternion."""
    folder = robot("droid")
    whole = open_dataset(folder)

    found = open_dataset(folder, features=FeaturesConfig(proprio_rotations=[{"columns": [2, 6], "form": "quaternion"}]))

    assert found.proprio_dim == 8 + 2 == found.episode(1).proprio.shape[1]
    assert [name for name, _ in proprio_names(found)][1:4] == ["joint_1", "rotation_0", "rotation_1"]
    np.testing.assert_array_equal(found.numbers().proprio[:, [0, 1, 8, 9]], whole.numbers().proprio[:, [0, 1, 6, 7]])
    assert (found.numbers().actions == whole.numbers().actions).all()
    first = found.numbers().proprio[:, 2:5]
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert found.fingerprint() != whole.fingerprint()
    beyond = FeaturesConfig(proprio_rotations=[{"columns": [6, 9], "form": "axis_angle"}])
    with pytest.raises(InputError, match=r"proprio_rotations names the dimensions \[6, 9\], but.*has 8 \(joint_0"):
        open_dataset(folder, features=beyond)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": [*"abcde", "main_gripper"]}, r"'action' has 6 numbers \(a, b, c, d, e, main_gripper\)"),
        ({"names": ["shoulder_lift.pos", "shoulder_pan.pos", *"cde", "gripper.pos"]}, r"has 6 numbers \(shoulder_lift"),
    ],
)
def test_other_names_are_asked_for_with_yaml(
    change: dict[str, Any], message: str, robot: Callable[[str], Path]
) -> None:
    folder = robot("so100")
    edit_feature(folder, "action", **change)

    with pytest.raises(InputError, match=message) as refused:
        open_dataset(folder)

    said = str(refused.value)
    pasted = yaml.safe_load(said[said.index("data:") :])["data"]["features"]
    pasted["action_spec"]["groups"][-1] |= {"open": 100}
    assert kinds(folder, **pasted) == ["joints 5", "gripper 1"]


def test_a_unit_that_nothing_shows_is_asked_for(robot: Callable[[str], Path]) -> None:
    folder = robot("so100")
    (folder / "meta" / "stats.json").unlink()

    with pytest.raises(InputError, match=re.escape("degrees or in LeRobot's -100..100")) as refused:
        open_dataset(folder)

    said = str(refused.value)
    assert kinds(folder, **yaml.safe_load(said[said.index("data:") :])["data"]["features"]) == ["joints 5", "gripper 1"]


def test_statistics_that_hide_the_unit_are_found_out(robot: Callable[[str], Path]) -> None:
    folder = robot("so101_degrees")
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    stats["action"] |= {"min": [-90.0] * 6, "max": [90.0] * 6}
    (folder / "meta" / "stats.json").write_text(json.dumps(stats))

    with pytest.raises(InputError, match=r"'shoulder_pan.pos' reaches 149.978, but is read as LeRobot's -100..100"):
        _ = open_dataset(folder).numbers()


def test_the_unit_follows_from_the_statistics_of_episodes(robot: Callable[[str], Path]) -> None:
    """Those of version 2.1. What is no such line tells nothing, however deep it goes."""
    folder = robot("so101_degrees")
    whole = json.loads((folder / "meta" / "stats.json").read_text())
    (folder / "meta" / "stats.json").unlink()
    lines = folder / "meta" / "episodes_stats.jsonl"
    lines.write_text("".join(json.dumps({"episode_index": number, "stats": whole}) + "\n" for number in range(2)))

    assert open_dataset(folder).action_spec.groups[0].unit == pytest.approx(DEGREE)
    for wrong in ("[" * 100_000, '{"stats": 3}', "3", '{"stats": {"action": {"min": {}, "max": []}}}', "\xff"):
        lines.write_text(wrong, encoding="latin-1")
        with pytest.raises(InputError, match=re.escape("degrees or in LeRobot's -100..100")):
            open_dataset(folder)
