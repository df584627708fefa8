"""robomimic's HDF5 layout: the same episodes under other names, as quaternions, upright, and without language."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from atlas.config import DataConfig
from atlas.data.formats import open_configured, open_dataset
from atlas.data.sampling.split import split_dataset
from atlas.errors import InputError
from tests.conftest import MakeLibero
from tests.data.hdf5_files import ENV_ARGS, as_robomimic

LIFT = "lift the cube"


def changed_env(**changes: Any) -> dict[str, Any]:
    env_args = copy.deepcopy(ENV_ARGS)
    env_args["env_kwargs"]["controller_configs"].update(changes)
    return env_args


def test_its_episodes_are_read_as_liberos_are(make_libero: MakeLibero) -> None:
    libero = open_dataset(make_libero())
    robomimic = open_dataset(as_robomimic(make_libero(folder="robomimic")), instruction=LIFT)

    assert robomimic.format == "robomimic-hdf5" and robomimic.tasks == [LIFT]
    assert robomimic.cameras == ["agentview", "eye_in_hand"]
    assert (robomimic.action_spec, robomimic.environment) == (libero.action_spec, None)
    for number in (0, 4):
        mine, same = robomimic.episode(number), libero.episode(number)
        np.testing.assert_array_equal(mine.actions, same.actions)
        np.testing.assert_allclose(mine.proprio, same.proprio, atol=1e-5)
        np.testing.assert_array_equal(mine.rewards, same.rewards)
        np.testing.assert_array_equal(mine.init_state, mine.sim_states[0])
        for camera in libero.cameras:
            np.testing.assert_array_equal(mine.images(camera, [3, 1]), same.images(camera, [3, 1]))


def test_quaternions_are_turned_into_axis_times_angle(make_libero: MakeLibero) -> None:
    """By hand: no turn, a quarter around z, and half a turn around y."""
    root = as_robomimic(make_libero({"lift": [3, 3]}))
    half = np.sqrt(0.5)
    with h5py.File(next(root.iterdir()), "a") as file:
        file["data/demo_0/obs/robot0_eef_quat"][:] = [[0, 0, 0, 1], [0, 0, half, half], [0, 1, 0, 0]]

    proprio = open_dataset(root, instruction=LIFT).episode(0).proprio

    np.testing.assert_allclose(proprio[:, 3:6], [[0, 0, 0], [0, 0, np.pi / 2], [0, np.pi, 0]], atol=1e-6)


def test_the_control_rate_is_the_files(make_libero: MakeLibero) -> None:
    env_args = copy.deepcopy(ENV_ARGS)
    env_args["env_kwargs"]["control_freq"] = 10

    dataset = open_dataset(as_robomimic(make_libero(), env_args), instruction=LIFT)

    assert dataset.fps == dataset.action_spec.control_hz == 10.0


def without_language(root: Path) -> DataConfig:
    return DataConfig(path=str(root))


def without_images(root: Path) -> DataConfig:
    with h5py.File(sorted(root.iterdir())[0], "a") as file:
        for key in ("agentview_image", "robot0_eye_in_hand_image"):
            del file[f"data/demo_0/obs/{key}"]
    return DataConfig(path=str(root), instruction=LIFT)


def without_quaternion(root: Path) -> DataConfig:
    with h5py.File(sorted(root.iterdir())[0], "a") as file:
        del file["data/demo_1/obs/robot0_eef_quat"]
    return DataConfig(path=str(root), instruction=LIFT)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_language, ["task_0_demo_robomimic.hdf5", "'problem_info'", "data.instruction="]),
        (without_images, ["demo_0/obs", "_image", "dataset_states_to_obs.py"]),
        (without_quaternion, ["demo_1", "'obs/robot0_eef_quat'", "robomimic's layout"]),
    ],
)
def test_what_it_lacks_is_said(make_libero: MakeLibero, spoil: Callable[[Path], DataConfig], words: list[str]) -> None:
    config = spoil(as_robomimic(make_libero()))

    with pytest.raises(InputError) as error:
        open_configured(config)

    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "JOINT_POSITION"}, ["type", "JOINT_POSITION", "OSC_POSE"]),
        ({"control_delta": False}, ["control_delta", "False"]),
        ({"output_max": 0.1}, ["output_max", "0.1"]),
    ],
)
def test_actions_of_another_kind_are_refused(make_libero: MakeLibero, change: dict[str, Any], words: list[str]) -> None:
    root = as_robomimic(make_libero(), changed_env(**change))

    with pytest.raises(InputError) as error:
        open_dataset(root, instruction=LIFT)

    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_instruction_beside_those_of_the_files_is_refused(make_libero: MakeLibero) -> None:
    with pytest.raises(InputError, match=r"data\.instruction is 'lift the cube'.*'open the drawer'"):
        open_dataset(make_libero(), instruction=LIFT)


def masked(make_libero: MakeLibero, **lists: list[int]) -> Path:
    """A file of ten demos with robomimic's lists of some of them."""
    root = as_robomimic(make_libero({"lift": [5] * 10}))
    with h5py.File(next(root.iterdir()), "a") as file:
        for name, demos in lists.items():
            file[f"mask/{name}"] = np.array([f"demo_{number}".encode() for number in demos])
    return root


@pytest.mark.parametrize(
    ("lists", "train", "val"),
    [
        ({"train": [0, 1, 2, 3, 4, 5, 6], "valid": [7, 8, 9]}, [0, 1, 2, 3, 4, 5, 6], [7, 8, 9]),
        ({"valid": [0, 4], "20_percent": [1, 2]}, [1, 2, 3, 5, 6, 7, 8, 9], [0, 4]),
        ({"train": [0, 4, 5]}, [0, 4, 5], [1, 2, 3, 6, 7, 8, 9]),
    ],
)
def test_its_own_split_is_used(
    make_libero: MakeLibero, lists: dict[str, list[int]], train: list[int], val: list[int]
) -> None:
    dataset = open_dataset(masked(make_libero, **lists), instruction=LIFT)

    assert [side.tolist() for side in split_dataset(dataset, 0.2, seed=0)] == [train, val]


def test_demos_that_its_split_does_not_name_are_left_out_and_said(
    make_libero: MakeLibero, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset(masked(make_libero, train=[0, 2, 4, 6], valid=[9, 11]), instruction=LIFT)

    assert [side.tolist() for side in split_dataset(dataset, 0.2, seed=0)] == [[0, 1, 2, 3], [4]]
    assert "5 of 10 demos are neither in mask/train nor in mask/valid, and are left out" in caplog.text


def test_a_split_without_validation_is_none_and_said(make_libero: MakeLibero, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset(masked(make_libero, train=list(range(10))), instruction=LIFT)

    assert dataset.sides is None and "mask/train names 10 of 10 demos, which is not a split" in caplog.text


def test_a_demo_on_both_sides_is_refused(make_libero: MakeLibero) -> None:
    with pytest.raises(InputError, match=r"1 demos are both in mask/train and in mask/valid, such as demo_4"):
        open_dataset(masked(make_libero, train=[1, 2, 4], valid=[4, 5]), instruction=LIFT)
