"""The promises of HDF5 layouts, LIBERO's and robomimic's, checked when a file is opened: a reader that guesses would
train on garbage."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from atlas.data.hdf5.opening import check_images, find, numbers_in
from atlas.data.hdf5.texts import attribute_in
from atlas.data.orientation import Orientation
from atlas.errors import InputError
from atlas.system.documents import parse_json
from atlas.types import ActionSpec

logger = logging.getLogger(__name__)

_LIBERO_SPEC = ActionSpec()
# A scene's name, which is not part of the instruction, and then at least three words.
_LIBERO_NAME = re.compile(r"(?:[A-Z]+(?:_[A-Z]+)*_SCENE\d+_)?([a-z]+(?:_[a-z]+){2,})_demo\.(?:hdf5|h5)")
_MUCH_CLOSER = 0.2  # observations may be one physics step, 1/25 of a row, older than the state beside them


@dataclass(frozen=True)
class Layout:
    """The names of an episode's parts in a project's HDF5 files."""

    project: str
    format: str
    proprio: Mapping[str, int]  # the parts in order, and how many numbers each has; 4 means a quaternion
    images: str  # the ending of an image observation's name
    robot: str  # the beginning of the names of cameras on the robot
    orientation: Orientation  # of the stored images

    def image_key(self, camera: str, names: Collection[str]) -> str:
        """The name of a camera's images among the names of a demo's observations."""
        key, on_robot = f"{camera}{self.images}", f"{self.robot}{camera}{self.images}"
        return on_robot if key not in names and on_robot in names else key

    def cameras(self, names: Collection[str]) -> list[str]:
        """The cameras among the names of a demo's observations; both layouts give them the same names."""
        keys = [key for key in names if key.endswith(self.images)]
        return sorted(key.removesuffix(self.images).removeprefix(self.robot) for key in keys)


LIBERO = Layout(
    project="LIBERO",
    format="libero-hdf5",
    proprio={"obs/ee_pos": 3, "obs/ee_ori": 3, "obs/gripper_states": 2},
    images="_rgb",
    robot="",
    orientation="upside_down",  # as robosuite returns them
)
ROBOMIMIC = Layout(
    project="robomimic",
    format="robomimic-hdf5",
    proprio={"obs/robot0_eef_pos": 3, "obs/robot0_eef_quat": 4, "obs/robot0_gripper_qpos": 2},
    images="_image",
    robot="robot0_",
    orientation="upright",  # robomimic flips robosuite's images before storing them
)


def layout_of(observations: h5py.Group) -> Layout:
    """The layout of a demo's observations: robomimic's if the names are robomimic's, otherwise LIBERO's."""
    return ROBOMIMIC if any(key.startswith("robot0_") for key in observations) else LIBERO


def group_in(parent: h5py.Group, key: str, where: str, layout: Layout = LIBERO) -> h5py.Group:
    """A group of the layout. Raises InputError if it is missing, or is something else."""
    found = _member(parent, key, where, layout)
    if not isinstance(found, h5py.Group):
        raise InputError(f"{where}/{key} is a dataset, where {layout.project}'s layout has a group.")
    return found


def array_in(parent: h5py.Group, key: str, where: str, layout: Layout = LIBERO) -> h5py.Dataset:
    """A dataset of the layout. Raises InputError if it is missing, or is something else."""
    found = _member(parent, key, where, layout)
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{where}/{key} is a group, where {layout.project}'s layout has a dataset.")
    return found


def _member(parent: h5py.Group, key: str, where: str, layout: Layout) -> h5py.Group | h5py.Dataset:
    found = find(parent, key, where)
    if found is None:
        raise InputError(f"{where} lacks the key '{key}', which {layout.project}'s layout has.")
    return found


def read_demo(
    demo: h5py.Group, where: str, layout: Layout, action_dim: int
) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[int, int]]]:
    """A demo's actions [T, action_dim], proprio float32 [T, 8] and cameras with their images' height and width, after
    checking that the parts fit together.

    Images are not read; only their type, size and place in the file are checked. Raises InputError.
    """
    observations = group_in(demo, "obs", where, layout)
    names = set(observations)
    cameras = layout.cameras(names)
    actions = _numbers(demo, "actions", action_dim, where, layout)
    if not len(actions):
        raise InputError(f"{where}/actions has no frames.")
    proprio = {key: _numbers(demo, key, width, where, layout) for key, width in layout.proprio.items()}
    if not cameras:
        raise InputError(
            f"{where}/obs has no images: none of its keys ends in {layout.images}."
            + (" robomimic's script dataset_states_to_obs.py renders them." if layout is ROBOMIMIC else "")
        )
    frames = {key: len(values) for key, values in proprio.items()}
    sizes = {}
    for camera in cameras:
        key = layout.image_key(camera, names)
        frames[f"obs/{key}"], *size = _images_of(observations, key, f"{where}/obs", layout)
        sizes[camera] = (size[0], size[1])
    for key, count in frames.items():
        if count != len(actions):
            raise InputError(f"{where}/{key} has {count} frames, but actions has {len(actions)}.")
    parts = [_axis_angle(values) if values.shape[1] == 4 else values for values in proprio.values()]
    return actions, np.concatenate(parts, axis=1).astype(np.float32), sizes


def stored_late(demo: h5py.Group, where: str) -> bool:
    """Whether the observation in a row is the one that its action led to, rather than the one before it.

    This is so in LIBERO's own files: the script that made them (scripts/create_dataset.py of its repository) first
    steps and then stores, while the state in a row is always that before its action. The robot's joints are in both; in
    the states they are the first of MuJoCo's positions, after the time. False if they are missing, or do not tell.
    """
    found = [find(demo, key, where) for key in ("obs/joint_states", "states")]
    if not all(isinstance(each, h5py.Dataset) and each.dtype.kind == "f" and each.ndim == 2 for each in found):
        return False
    joints, states = (numbers_in(each, where).astype(np.float64) for each in found if isinstance(each, h5py.Dataset))
    width = joints.shape[1]
    if len(joints) != len(states) or len(joints) < 3 or states.shape[1] <= width:
        return False
    positions = states[:, 1 : 1 + width]
    with np.errstate(invalid="ignore", over="ignore"):  # non-finite numbers tell nothing
        here, ahead = np.abs(joints - positions).mean(), np.abs(joints[:-1] - positions[1:]).mean()
    return bool(ahead < _MUCH_CLOSER * here)


def _axis_angle(quaternions: np.ndarray) -> np.ndarray:
    """Unit quaternions [T, 4], scalar last, as axis times angle [T, 3] with the angle in [0, 2 pi], as in robosuite."""
    quaternions = quaternions.astype(np.float64)
    w = quaternions[:, 3:].clip(-1, 1)
    sine = np.sqrt(1 - w**2)
    return np.where(sine < 1e-9, 0.0, quaternions[:, :3] * 2 * np.arccos(w) / np.maximum(sine, 1e-9))


def _numbers(demo: h5py.Group, key: str, width: int, where: str, layout: Layout) -> np.ndarray:
    """A column [T, width] of finite numbers, as float32."""
    stored = array_in(demo, key, where, layout)
    if stored.dtype.kind not in "fiu":
        raise InputError(f"{where}/{key} is of type {stored.dtype}, expected numbers.")
    if stored.ndim != 2 or stored.shape[1] != width:
        raise InputError(f"{where}/{key} has shape {stored.shape}, expected [frames, {width}].")
    values = numbers_in(stored, f"{where}/{key}")
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(values.astype(np.float32)).all(axis=1))
    if len(bad):
        raise InputError(
            f"{where}/{key} holds values that are not finite, in {len(bad)} of {len(values)} frames; the first is "
            f"frame {bad[0]}. Repair the file, or leave it out."
        )
    return values


def _images_of(observations: h5py.Group, key: str, where: str, layout: Layout) -> tuple[int, int, int]:
    """The number of images, their height and their width."""
    images = array_in(observations, key, where, layout)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not min(images.shape[1:]):
        raise InputError(
            f"{where}/{key} is {images.dtype} of shape {images.shape}, expected uint8 [frames, height, width, 3]."
        )
    check_images(images, f"{where}/{key}")
    count, height, width, _ = images.shape
    return int(count), int(height), int(width)


def instruction_of(data: h5py.Group, path: Path, given: str | None) -> str:
    """The instruction of the file's demos: from the file, from the config (`given`), or from the file's name, which is
    the task's name in LIBERO and in datasets made from it, such as OpenVLA's. Raises InputError."""
    info = attribute_in(data, "problem_info", f"{path}: data")
    if info is None:
        if given is not None:
            return given
        if named := _LIBERO_NAME.fullmatch(path.name):
            instruction = named[1].replace("_", " ")
            logger.info("%s: the instruction is taken from the file's name: '%s'.", path, instruction)
            return instruction
        raise InputError(
            f"{path}: data lacks the attribute 'problem_info', where LIBERO stores the instruction, and the file is "
            "not named like LIBERO's, such as open_the_middle_drawer_demo.hdf5. Say what its episodes do: "
            "data.instruction='lift the cube' (in a mixture, the instruction in data.datasets)."
        )
    try:
        instruction = parse_json(data.attrs["problem_info"])["language_instruction"]
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{path}: the attribute 'problem_info' of data holds no 'language_instruction'.") from None
    words = instruction if isinstance(instruction, list) else [instruction]
    if not all(isinstance(word, str) for word in words):
        raise InputError(f"{path}: 'language_instruction' in 'problem_info' is {instruction!r}, expected text.")
    text = " ".join(words).strip().strip('"')
    if given is not None:
        raise InputError(f"data.instruction is '{given}', but {path} has its own: '{text}'. Leave the key out.")
    return text


def read_env_args(data: h5py.Group, path: Path) -> dict[str, Any]:
    """Read what the file says about the world it was recorded in; empty if it says nothing. Raises InputError."""
    if "env_args" not in data.attrs:
        return {}
    try:
        values = parse_json(data.attrs["env_args"])
        values.get("env_name")
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path}: the attribute 'env_args' of data is not a JSON object with 'env_name'.") from None
    return dict(values)


def control_of(env_args: Mapping[str, Any], path: Path) -> float:
    """Actions per second, if `env_args` says how the robot was controlled; otherwise LIBERO's rate.

    Raises InputError if, as far as the file says, the actions are not LIBERO's.
    """
    settings = env_args.get("env_kwargs")
    settings = settings if isinstance(settings, Mapping) else {}
    control = settings.get("controller_configs")
    control = control if isinstance(control, Mapping) else {}
    parts = control.get("body_parts")  # robosuite 1.5 has one entry per part of the robot
    control = parts.get("right", {}) if isinstance(parts, Mapping) else control
    spec = _LIBERO_SPEC
    largest = [group.unit for group in spec.groups if group.kind != "gripper" for _ in group.names]
    wants = {"type": "OSC_POSE", "control_delta": True, "input_type": "delta", "output_max": largest}
    for key, wanted in wants.items():
        if control.get(key, wanted) != wanted:
            raise InputError(
                f"{path}: its actions are not LIBERO's: {key} in controller_configs of 'env_args' is {control[key]!r}, "
                f"but Atlas reads {wanted!r}. Convert the file with its own project's scripts."
            )
    rate = settings.get("control_freq", spec.control_hz)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 10_000:
        raise InputError(f"{path}: control_freq in 'env_args' is {rate!r}, expected the number of actions per second.")
    return float(rate)
