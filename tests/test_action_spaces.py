"""An action space is what its groups say, from data to training, its media, checks, the viewer and back from disk."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import atlas
from atlas.checks.data_check import check_data
from atlas.checks.inspection import inspect_dataset
from atlas.config import load_config
from atlas.config.data_sections import FeaturesConfig
from atlas.data.convert import Conversion, convert
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_configured, open_dataset
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.types import ActionGroup, ActionSpec
from atlas.viewer.episode_timeline import make_timeline
from atlas.viewer.page import write_page
from tests.action_spaces import (
    ARM,
    FLAT,
    GRIPPER,
    LIBERO,
    NO_GRIPPER,
    POSITION,
    SPACES,
    TWO_ARMS,
    MadeUpDataset,
)
from tests.conftest import MakeOnce
from tests.test_same_numbers import SMALL

TWO_HANDS = ActionSpec(
    (
        ActionGroup("position", ("lx", "ly", "lz"), delta=True, arm="left"),
        ActionGroup("rotation", ("lr", "lp", "lw"), delta=True, arm="left", form="euler_xyz"),
        ActionGroup("position", ("rx", "ry", "rz"), delta=True, arm="right"),
        ActionGroup("rotation", tuple("abcdef"), arm="right", form="rotation_6d"),
        ActionGroup("base", ("vx", "wz"), unit=0.5),
    )
)


# ---- what a space says -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*SPACES.values(), TWO_HANDS], ids=[*SPACES, "two hands"])
def test_a_space_comes_back_from_json_as_it_was(spec: ActionSpec) -> None:
    assert ActionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_form_of_one_range_each_is_still_read() -> None:
    old = {
        "names": ["x", "y", "z", "gripper"],
        "position": [0, 3],
        "rotation": [3, 3],
        "gripper": 3,
        "position_unit_m": 1.0,
        "rotation_unit_rad": 1.0,
        "rotation_form": "none",
        "delta": False,
        "control_hz": 10.0,
    }

    assert ActionSpec.from_dict(old) == ActionSpec((ActionGroup("position", ("x", "y", "z")), GRIPPER), 10.0)
    assert ActionSpec.from_dict({}) == LIBERO


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"groups": []}, "no group other than grippers"),
        ({"groups": [{"kind": "gripper", "names": ["g"]}]}, "no group other than grippers"),
        ({"groups": [{"kind": "arm", "names": ["a"]}]}, "kind is 'arm', expected one of position, rotation"),
        ({"groups": [{"kind": "joints", "names": []}]}, "expected one name per number"),
        ({"groups": [{"kind": "joints", "names": ["a"], "units": 1}]}, "no key 'units'"),
        ({"groups": [{"kind": "joints", "names": ["a"], "unit": 0}]}, "unit of joints is 0, expected more"),
        ({"groups": [{"kind": "joints", "names": ["a"], "arm": "third"}]}, "arm of joints is 'third'"),
        ({"groups": [{"kind": "joints", "names": ["a", "a"]}]}, "the name 'a' occurs twice"),
        ({"groups": [{"kind": "rotation", "names": ["a", "b", "c"]}]}, "form of rotation is None"),
        ({"groups": [{"kind": "rotation", "names": ["a"], "form": "quaternion"}]}, "has 4 numbers, but 1 names"),
        ({"groups": [{"kind": "gripper", "names": ["g", "h"]}]}, "a gripper is one number"),
        ({"groups": [{"kind": "gripper", "names": ["g"], "open": 1, "closed": 1}]}, "both 1, and must differ"),
        ({"groups": [*TWO_ARMS.to_dict()["groups"], GRIPPER.to_dict()]}, "it has three grippers"),
        ({"groups": [POSITION.to_dict(), {"kind": "position", "names": ["a"]}]}, "two groups are the position"),
        ({"position": [0, 3], "rotation": [2, 5]}, "do not cover, one after the other, the 7 numbers"),
        ({"position": [0, 10**9]}, "do not cover, one after the other"),
        ({"groups": 3}, "does not describe actions"),
        ({"grip": 3}, "does not describe actions"),
        ({"groups": [POSITION.to_dict()], "control_hz": 0}, "control_hz is 0"),
    ],
)
def test_a_space_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ActionSpec.from_dict(values)


def test_numbers_are_read_in_the_units_of_their_group() -> None:
    action = np.array([[0.1, -np.pi, 0, 0, 0, 0.25, 1, 0, 0, 0, 0, 0, 0, 7]])

    values = TWO_ARMS.readable(np.roll(action, 1, axis=1))

    assert values[0, 0] == pytest.approx(np.rad2deg(7)) and values[0, 2] == pytest.approx(-180)
    assert values[0, 6] == 0.75  # a quarter of the way from closed, which is 0, to open
    assert values[0, 13] == 1.0  # closed
    assert TWO_ARMS.readable_units == ["deg"] * 6 + ["P(close)"] + ["deg"] * 6 + ["P(close)"]
    assert ARM.readable_units[-1] == "share closed" and FLAT.readable_units[0] == "mm per step"


def test_errors_are_those_of_each_arm_and_their_mean() -> None:
    predicted, recorded = torch.zeros(1, 14), torch.zeros(1, 14)
    predicted[0, :6] = 0.1  # rad, of the left joints
    recorded[0, 13], predicted[0, 13] = 1.0, 0.2  # the right gripper is open, and told to close by 0.8

    errors = {name: round(float(value), 4) for name, value in TWO_ARMS.errors(predicted, recorded).items()}

    assert errors == {
        "pose_l2_error": 0.2449,
        "pose_l1_error": 0.05,
        "gripper_error": 0.4,
        "left/gripper_error": 0.0,
        "right/gripper_error": 0.8,
        "gripper_accuracy": 0.5,
        "left/gripper_accuracy": 1.0,
        "right/gripper_accuracy": 0.0,
        "joint_error_deg": 2.8648,
        "left/joint_error_deg": 5.7296,
        "right/joint_error_deg": 0.0,
    }


def test_a_continuous_gripper_has_an_error_and_is_never_right_or_wrong() -> None:
    predicted, recorded = torch.zeros(1, 6), torch.zeros(1, 6)
    predicted[0, 5], recorded[0, 5] = 30.0, 50.0  # of 100

    errors = ARM.errors(predicted, recorded)

    assert float(errors["gripper_error"]) == pytest.approx(0.2)
    assert "gripper_accuracy" not in errors
    assert not any("gripper" in name for name in NO_GRIPPER.error_names)


@pytest.mark.parametrize(
    ("form", "quarter"),
    [
        ("axis_angle", [0, 0, np.pi / 2]),
        ("euler_xyz", [0, 0, np.pi / 2]),
        ("quaternion", [0, 0, 0.5**0.5, 0.5**0.5]),
        ("rotation_6d", [0, 1, 0, -1, 0, 0]),
    ],
)
def test_a_quarter_turn_is_90_degrees_in_every_form(form: Any, quarter: list[float]) -> None:
    still = {"quaternion": [0, 0, 0, 1.0], "rotation_6d": [1.0, 0, 0, 0, 1, 0]}.get(form, [0.0, 0, 0])
    spec = ActionSpec((ActionGroup("rotation", tuple("abcdef"[: len(still)]), form=form),))

    errors = spec.errors(torch.tensor([quarter]), torch.tensor([still]))

    assert float(errors["rotation_error_deg"]) == pytest.approx(90, abs=1e-4)


def test_each_arm_has_a_path() -> None:
    actions = np.zeros((2, TWO_HANDS.dim))
    actions[:, 0], actions[:, 7] = 1.0, 2.0

    paths = TWO_HANDS.paths(actions)

    assert paths["left"].tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    assert paths["right"][-1].tolist() == [0, 4, 0]
    assert TWO_ARMS.paths(np.zeros((2, 14))) == {}


# ---- from data to a policy -------------------------------------------------------------------------------

REGRESSION, FLOW = "{name: regression}", "{name: flow_matching, dim: 32, layers: 1, steps: 2}"
JOURNEYS = {
    "two arms": (TWO_ARMS, REGRESSION, {"left/joint_error_deg", "right/gripper_accuracy"}, {"actions/left/gripper"}),
    "joints": (ARM, FLOW, {"joint_error_deg", "gripper_error"}, {"actions/gripper"}),
    "no rotation": (FLAT, FLOW, {"position_error_mm", "gripper_accuracy"}, {"actions/gripper", "plots/views/1"}),
    "no gripper": (NO_GRIPPER, REGRESSION, {"position_error_mm", "rotation_error_deg"}, {"plots/views/1"}),
    "two hands": (TWO_HANDS, FLOW, {"left/position_error_mm", "right/rotation_error_deg"}, {"plots/views/1/right"}),
}
PICTURES = ["logging.media.plot_logger={interval: 2, samples: 1}", "logging.media.action_logger.interval=2"]
NO_OTHERS = ["logging.media.gradient_logger.interval=0", "logging.media.vis_dataset.interval=0"]


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_policy_is_trained_in_any_space_and_looked_at(journey: str, tmp_path: Path) -> None:
    spec, head, wanted, drawn = JOURNEYS[journey]
    convert(MadeUpDataset(spec), tmp_path / "data", Conversion("lerobot", "png"), workers=1)
    dataset = open_dataset(tmp_path / "data")
    settings = [*SMALL, f"data.path={tmp_path / 'data'}", f"output_dir={tmp_path}", "run_name=run", *PICTURES]
    settings += ["data.action_horizon=4", "training.max_steps=2", "training.val_interval=2", f"model.head={head}"]

    result = atlas.train(None, [*settings, *NO_OTHERS, "training.log_interval=1"])

    measured = {name for name in result.metrics if name.startswith("val/")}
    assert measured >= {f"val/{name}" for name in wanted}
    assert ("val/gripper_loss" in measured) == any("gripper" in name for name in measured) == bool(spec.grippers)
    assert pictures(result.run_dir) >= {*drawn, "plots/chunks", "actions/distributions"}
    assert ("actions/gripper" in pictures(result.run_dir)) == (len(spec.grippers) == 1)
    policy = load_policy(result.best_checkpoint)
    assert policy.processor.action_spec == dataset.action_spec == spec
    errors = [finding for finding in check_data(load_config(None, settings), "none") if finding.severity == "error"]
    assert errors == []
    timeline = make_timeline(dataset, 0, str(result.best_checkpoint))
    write_page(tmp_path / "page.html", timeline)
    assert [curve.name for curve in timeline.actions] == list(spec.names)
    assert timeline.paths.keys() == {group.arm for group, _ in spec.spans("position")}
    assert len(timeline.closed) == len(spec.grippers)
    assert timeline.prediction is not None and "off by" in timeline.prediction.summary()


def pictures(run_dir: Path) -> set[str]:
    """Names of the images in a run's TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 1})
    events.Reload()
    return set(events.Tags()["images"])


# ---- datasets of others ----------------------------------------------------------------------------------

SAID: dict[str, Any] = {
    "control_hz": 50,
    "groups": [
        {"kind": "joints", "columns": [0, 6], "arm": "left"},
        {"kind": "gripper", "columns": 6, "arm": "left", "open": 1, "closed": 0},
        {"kind": "joints", "columns": [7, 13], "arm": "right"},
        {"kind": "gripper", "columns": 13, "arm": "right", "open": 1, "closed": 0},
    ],
}


def as_of_others(folder: Path, spec: ActionSpec = TWO_ARMS) -> Path:
    """A LeRobot dataset of two arms that Atlas has noted nothing of."""
    convert(MadeUpDataset(spec), folder, Conversion("lerobot", "png"), workers=1)
    shutil.rmtree(folder / "meta" / "atlas")
    return folder


def opened(folder: Path, spec: dict[str, Any]) -> EpisodeDataset:
    return open_dataset(folder, features=FeaturesConfig.model_validate({"action_spec": spec}))


def test_a_config_says_what_the_actions_of_a_dataset_are(tmp_path: Path) -> None:
    root = as_of_others(tmp_path / "set")

    dataset = opened(root, SAID)
    backwards = opened(root, {"groups": SAID["groups"][2:] + SAID["groups"][:1]})

    assert dataset.action_spec == TWO_ARMS  # called as the dataset itself calls its numbers
    recorded = MadeUpDataset(TWO_ARMS).numbers().actions
    np.testing.assert_array_equal(dataset.numbers().actions, recorded)
    np.testing.assert_array_equal(backwards.numbers().actions, recorded[:, [*range(7, 14), *range(6)]])
    assert inspect_dataset(dataset)["action_spec"] == TWO_ARMS.to_dict()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"kind": "joints", "columns": [0, 15]}], "uses 15 dimensions, but 'action' .* has 14"),
        (
            [{"kind": "joints", "columns": [0, 6]}, {"kind": "joints", "columns": [5, 7]}],
            "two groups have the column 5",
        ),
        ([{"kind": "joints", "columns": [3, 3]}], "columns is .* such as"),
        ([{"kind": "gripper", "columns": 6}], "a gripper needs open and closed"),
        ([{"kind": "joints", "columns": 6, "open": 1}], "are for grippers, but kind is joints"),
        ([{"kind": "rotation", "columns": [0, 3]}], "form of rotation is None"),
        ([{"kind": "joints", "columns": [0, 2], "names": ["a"]}], "names has 1 names, but columns has 2 numbers"),
        ([{"kind": "gripper", "columns": 6, "open": 1, "closed": 0}], "no group other than grippers"),
        (
            [{"kind": "joints", "columns": [0, 6]}, {"kind": "gripper", "columns": 6, "open": 0.1, "closed": 0}],
            r"the gripper, dimension 6 .*lies within \[0, 1\], but is read as 0.1 \(open\) to 0 \(closed\)",
        ),
    ],
)
def test_groups_that_do_not_fit_the_dataset_are_refused(
    groups: list[dict[str, Any]], message: str, make_once: MakeOnce
) -> None:
    root = make_once("two_arms_of_others", as_of_others)

    with pytest.raises((InputError, ValueError), match=message):
        opened(root, {"groups": groups}).numbers()


def test_ranges_and_groups_are_not_both_said() -> None:
    with pytest.raises(ValueError, match="groups and gripper are both set"):
        FeaturesConfig.model_validate({"action_spec": SAID | {"gripper": 3}})


def test_a_mixture_brings_grippers_to_the_same_ends(tmp_path: Path) -> None:
    root = as_of_others(tmp_path / "set")
    percent = [group | ({"unit": np.pi / 180} if group["kind"] == "joints" else {}) for group in SAID["groups"]]
    turned = [group | ({"open": 0, "closed": 1} if group["kind"] == "gripper" else {}) for group in percent]
    sources = [
        {"path": str(root), "name": name, "features": {"action_spec": {"groups": groups, "control_hz": 50}}}
        for name, groups in (("rad", SAID["groups"]), ("deg", turned))
    ]

    mixture, _ = open_configured(load_config({"data": {"datasets": sources}}).data)

    ours, theirs = mixture.episode(0).actions, mixture.episode(5).actions
    np.testing.assert_allclose(theirs[:, :6], np.deg2rad(ours[:, :6]), rtol=1e-5)
    np.testing.assert_allclose(theirs[:, [6, 13]], 1 - ours[:, [6, 13]], atol=1e-6)
