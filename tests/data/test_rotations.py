"""Rotations in a source's form become the policy's, and a path of them does not jump."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from atlas.config.action_sections import OtherForm, SourceActionsConfig, SourceGroupConfig, numbers_of_form
from atlas.config.data_sections import FeaturesConfig
from atlas.data.lerobot.action_columns import action_spec, convert, convert_state, state_names
from atlas.rotations import from_quaternion, inverse, multiply, to_quaternion
from atlas.types import ROTATION_NUMBERS

FORMS = [*ROTATION_NUMBERS, *get_args(OtherForm)]


def some(count: int = 200) -> torch.Tensor:
    """Unit quaternions [count, 4], real part first and not negative."""
    q = torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.where(q[:, :1] < 0, -q, q) / q.norm(dim=-1, keepdim=True)


def in_form(q: torch.Tensor, form: str) -> torch.Tensor:
    """Quaternions in a source's form, by SciPy."""
    Rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    rotation = Rotation.from_quat(q.roll(-1, -1).numpy())
    matrix = rotation.as_matrix()
    found = {
        "axis_angle": lambda: rotation.as_rotvec(),
        "quaternion": lambda: rotation.as_quat(),
        "quaternion_wxyz": lambda: q.numpy(),
        "matrix": lambda: matrix.reshape(-1, 9),
        "rotation_6d": lambda: np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], 1),
        "rotation_6d_rows": lambda: matrix[:, :2].reshape(-1, 6),
    }.get(form, lambda: rotation.as_euler(form.removeprefix("euler_")))()
    assert found.shape[1] == numbers_of_form(form)
    return torch.from_numpy(np.ascontiguousarray(found))


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_those_of_scipy(form: str) -> None:
    q = some()

    found = to_quaternion(in_form(q, form), form)

    torch.testing.assert_close((found * q).sum(-1).abs(), torch.ones(len(q), dtype=torch.float64))
    if form in ROTATION_NUMBERS:
        torch.testing.assert_close(from_quaternion(q, form), in_form(q, form), rtol=1e-6, atol=1e-9)


def test_turns_are_made_one_after_the_other() -> None:
    first, second = some(2)
    Rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    expected = (Rotation.from_quat(first.roll(-1)) * Rotation.from_quat(second.roll(-1))).as_quat()

    found = multiply(first, second)

    assert abs(float((found.roll(-1) * torch.from_numpy(expected)).sum())) == pytest.approx(1)
    torch.testing.assert_close(multiply(inverse(first), found), second)


def path_over_half_a_turn(episodes: int = 3, steps: int = 40) -> tuple[torch.Tensor, list[slice]]:
    """Hands that point down, and so are turned by about pi, and sway: axis-angles flip there. Real parts are made
    positive, as those who record do it: so quaternions flip too."""
    t = torch.linspace(0, 6, steps, dtype=torch.float64)
    paths = []
    for number in range(episodes):
        sway = torch.stack([torch.pi + 0.3 * torch.sin(t + number), 0.2 * torch.cos(t), 0.1 * t / 6], -1)
        q = to_quaternion(sway, "axis_angle")
        paths.append(torch.where(q[:, :1] < 0, -q, q))
    return torch.cat(paths), [slice(steps * n, steps * (n + 1)) for n in range(episodes)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("into", list(ROTATION_NUMBERS))
def test_a_path_over_half_a_turn_does_not_jump(form: str, into: str) -> None:
    q, episodes = path_over_half_a_turn()
    values = in_form(q, form).numpy().astype(np.float32)
    group = {"kind": "rotation", "columns": [0, values.shape[1]], "form": form, "into": into}
    source = SourceActionsConfig.model_validate({"groups": [group]})

    read = convert(values, source, episodes)

    spec = action_spec(source, 10.0)
    assert spec.dim == read.shape[1] == ROTATION_NUMBERS[into]
    steps = np.concatenate([np.abs(np.diff(read[rows], axis=0)).max(1) for rows in episodes])
    assert steps.max() < 0.2, "it jumps"
    first = read[[rows.start for rows in episodes]]
    assert np.abs(first - first.mean(0)).max() < 1.0, "episodes begin on different sides"
    back = to_quaternion(torch.from_numpy(read).double(), into)
    assert float((back * q).sum(-1).abs().min()) > 1 - 1e-5, "it is another rotation"


def test_what_does_not_jump_stays_as_it_is() -> None:
    values = in_form(some(8), "axis_angle").numpy().astype(np.float32) * 0.2
    stored = {"kind": "rotation", "columns": [0, 3], "form": "axis_angle"}

    for delta in (True, False):
        source = SourceActionsConfig.model_validate({"groups": [stored | {"delta": delta}]})
        np.testing.assert_array_equal(convert(values, source), values)


def test_degrees_are_converted_with_their_unit() -> None:
    group = {"kind": "rotation", "columns": [0, 3], "form": "euler_zyx", "unit": np.pi / 180, "into": "axis_angle"}
    source = SourceActionsConfig.model_validate({"groups": [group]})

    read = convert(np.array([[90.0, 0, 0]], np.float32), source)

    np.testing.assert_allclose(read, [[0, 0, np.pi / 2]], atol=1e-6)
    assert action_spec(source, 10.0).groups[0].unit == 1.0


@pytest.mark.parametrize("form", ["quaternion_wxyz", "axis_angle", "euler_zyx"])
def test_a_states_rotation_becomes_the_policys_form_and_all_else_stays(form: str) -> None:
    q, episodes = path_over_half_a_turn()
    turned = in_form(q, form).numpy().astype(np.float32)
    end = 2 + turned.shape[1]
    rest = np.arange(len(q) * 3, dtype=np.float32).reshape(-1, 3)
    values = np.concatenate([rest[:, :2], turned, rest[:, 2:]], axis=1)
    (rotation,) = FeaturesConfig(proprio_rotations=[{"columns": [2, end], "form": form}]).proprio_rotations

    read = convert_state(values, [rotation], episodes)

    assert read.shape[1] == 2 + 6 + 1
    np.testing.assert_array_equal(read[:, [0, 1, 8]], rest)
    np.testing.assert_allclose(read[:, 2:8], in_form(q, "rotation_6d"), atol=1e-5)
    alone = np.concatenate([convert_state(values[[row]], [rotation]) for row in range(20)])
    np.testing.assert_allclose(alone, read[:20], atol=1e-6)  # as a robot, which sees no path, has it
    names = state_names(["x", "y", *"abcd"[: end - 2], "grip"], [rotation])
    assert names == ["x", "y", *(f"rotation_{number}" for number in range(6)), "grip"]


@pytest.mark.parametrize(
    ("rotations", "message"),
    [
        ([{"columns": [0, 4], "form": "quaternion"}, {"columns": [3, 6], "form": "axis_angle"}], "overlap"),
        ([{"columns": [0, 3], "form": "quaternion"}], "has 4 numbers, but columns has 3"),
        ([{"columns": [0, 4], "form": "quaternion", "names": ["a"]}], "rotation_6d has 6 numbers"),
    ],
)
def test_rotations_of_a_state_that_cannot_be_are_refused(rotations: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeaturesConfig.model_validate({"proprio_rotations": rotations})


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"columns": [0, 3], "form": "matrix"}, "matrix has 9 numbers, but columns has 3"),
        ({"columns": [0, 3], "form": "euler"}, "euler_xyz"),
        ({"columns": [0, 4], "form": "quaternion_wxyz", "unit": 2}, "its numbers have no unit"),
        ({"columns": [0, 4], "form": "quaternion", "into": "rotation_6d", "names": list("abcd")}, "has 6 numbers"),
        ({"columns": [0, 3], "into": "quaternion"}, "form, which says what the source has, is missing"),
    ],
)
def test_forms_that_do_not_fit_are_refused(group: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceGroupConfig.model_validate({"kind": "rotation"} | group)
