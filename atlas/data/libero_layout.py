"""What LIBERO's HDF5 layout promises, seen to when a file is opened: a reader that guesses would train on garbage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from atlas.errors import InputError, first_line

# The parts of proprio, in order, and how many numbers each has.
PROPRIO = {"obs/ee_pos": 3, "obs/ee_ori": 3, "obs/gripper_states": 2}
_IMAGES = "_rgb"  # the end of a camera's name among the observations


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn what h5py raises for a damaged file, which is of many kinds, into an InputError that says where."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{where} is damaged ({first_line(error)}); fetch the file again, or leave it out.") from error


def open_file(path: Path) -> h5py.File:
    """The file, to read. Raises InputError where it is not HDF5, or cut off."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5; it may be truncated or not HDF5 at all ({error}).") from None


def group_in(parent: h5py.Group, key: str, where: str) -> h5py.Group:
    """A group of the layout. Raises InputError where it is missing, or is something else."""
    found = _member(parent, key, where)
    if not isinstance(found, h5py.Group):
        raise InputError(f"{where}/{key} is a dataset, where LIBERO's layout has a group.")
    return found


def array_in(parent: h5py.Group, key: str, where: str) -> h5py.Dataset:
    """A dataset of the layout. Raises InputError where it is missing, or is something else."""
    found = _member(parent, key, where)
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{where}/{key} is a group, where LIBERO's layout has a dataset.")
    return found


def _member(parent: h5py.Group, key: str, where: str) -> Any:
    if key not in parent:
        raise InputError(f"{where} lacks the key '{key}', which LIBERO's layout has.")
    with readable(f"{where}/{key}"):  # it may be a link to nowhere
        return parent[key]


def read_demo(demo: h5py.Group, where: str, action_dim: int) -> tuple[np.ndarray, list[str]]:
    """A demo's actions [T, action_dim] and the names of its cameras, once its parts are seen to fit together.

    Images are looked at from outside only: their type, size and place in the file. Raises InputError.
    """
    cameras = [key.removesuffix(_IMAGES) for key in group_in(demo, "obs", where) if key.endswith(_IMAGES)]
    actions = _numbers(demo, "actions", action_dim, where)
    if not len(actions):
        raise InputError(f"{where}/actions has no frames.")
    frames = {key: len(_numbers(demo, key, width, where)) for key, width in PROPRIO.items()}
    if not cameras:
        raise InputError(f"{where}/obs has no images: none of its keys ends in {_IMAGES}.")
    frames |= {image_key(camera): _count_images(demo, image_key(camera), where) for camera in cameras}
    for key, count in frames.items():
        if count != len(actions):
            raise InputError(f"{where}/{key} has {count} frames, and actions has {len(actions)}.")
    return actions, cameras


def image_key(camera: str) -> str:
    """Where a demo has a camera's images."""
    return f"obs/{camera}{_IMAGES}"


def _numbers(demo: h5py.Group, key: str, width: int, where: str) -> np.ndarray:
    """A column [T, width] of numbers that are finite as float32."""
    stored = array_in(demo, key, where)
    if stored.dtype.kind not in "fiu":
        raise InputError(f"{where}/{key} is of type {stored.dtype}, expected numbers.")
    if stored.ndim != 2 or stored.shape[1] != width:
        raise InputError(f"{where}/{key} has shape {stored.shape}, expected [frames, {width}].")
    values = np.asarray(stored)
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(values.astype(np.float32)).all(axis=1))
    if len(bad):
        raise InputError(
            f"{where}/{key} holds values that are not finite, in {len(bad)} of {len(values)} frames; the first is "
            f"frame {bad[0]}. Mend the file, or leave it out."
        )
    return values


def _count_images(demo: h5py.Group, key: str, where: str) -> int:
    images = array_in(demo, key, where)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not min(images.shape[1:]):
        raise InputError(
            f"{where}/{key} is {images.dtype} of shape {images.shape}, expected uint8 [frames, height, width, 3]."
        )
    offset = images.id.get_offset()  # None where it is chunked, or compressed
    if offset is not None and offset + images.size > demo.file.id.get_filesize():
        raise InputError(f"{where}/{key} lies beyond the end of the file, which is damaged.")
    return int(images.shape[0])


def instruction_of(data: h5py.Group, path: Path) -> str:
    """What the file's demos do. Raises InputError."""
    if "problem_info" not in data.attrs:
        raise InputError(f"{path}: data lacks the attribute 'problem_info', where LIBERO keeps the instruction.")
    try:
        instruction = json.loads(data.attrs["problem_info"])["language_instruction"]
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{path}: the attribute 'problem_info' of data holds no 'language_instruction'.") from None
    words = instruction if isinstance(instruction, list) else [instruction]
    if not all(isinstance(word, str) for word in words):
        raise InputError(f"{path}: 'language_instruction' in 'problem_info' is {instruction!r}, expected text.")
    return " ".join(words).strip().strip('"')


def environment_of(data: h5py.Group, path: Path) -> str | None:
    """The name of the world that the demos were recorded in, where the file says it. Raises InputError."""
    if "env_args" not in data.attrs:
        return None
    try:
        return json.loads(data.attrs["env_args"]).get("env_name")
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path}: the attribute 'env_args' of data is not a JSON object with 'env_name'.") from None
