"""The numbers read from HDF5 files with many demos, kept in the cache: reading thousands again takes a minute."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from atlas.data.hdf5.layout import (
    LIBERO,
    ROBOMIMIC,
    Layout,
    group_in,
    layout_of,
    read_demo,
    stored_late,
)
from atlas.data.hdf5.opening import find, leads_elsewhere, names_in, open_file, readable
from atlas.errors import InputError
from atlas.system.documents import parse_json
from atlas.system.files import atomic_path
from atlas.system.paths import cache_root
from atlas.system.process_control.pool import run_jobs

logger = logging.getLogger(__name__)

_FORMAT = 3
_FEW = 20  # demos per file: reading them is faster than keeping them
_DEMO = re.compile(r"demo_\d+")
_SHOWN = 5
_MANY = 400  # demos: worth separate processes


class Demo(NamedTuple):
    """The numbers of a demo, as `read_demo` gives them."""

    layout: Layout
    actions: np.ndarray  # [T, A] as stored
    proprio: np.ndarray  # float32 [T, P]
    cameras: dict[str, tuple[int, int]]  # {camera: height and width of its images}
    late: bool  # see `stored_late`


def demo_names(data: h5py.Group, path: Path) -> list[str]:
    """The demos of a file, in the order of the numbers in their names: `demo_0` and so on, and any group with actions.

    Other groups are passed over with a warning. Raises InputError if there are groups but none is a demo.
    """
    names = names_in(data)
    demos = [name for name in names if _DEMO.fullmatch(name) or _has_actions(data, name, path)]
    others = [name for name in names if name not in set(demos)]
    if others and not demos:
        raise InputError(
            f"{path} holds no episodes: data has no groups demo_0, demo_1 and so on, and none of {others[:_SHOWN]} has "
            "actions."
        )
    if others:
        logger.warning("%s: passed over %s in data, which have no actions.", path, others[:_SHOWN])
    return demos


def _has_actions(data: h5py.Group, name: str, path: Path) -> bool:
    try:
        found = find(data, name, f"{path}: data")
        return isinstance(found, h5py.Group) and "actions" in names_in(found)
    except InputError:  # reported when it is read
        return True


def read_whole_demo(data: h5py.Group, name: str, path: Path, layout: Layout | None, action_dim: int) -> Demo:
    """Read and check a demo. layout: the file's; None to derive it from the names. Raises InputError."""
    where = f"{path}: data/{name}"
    demo = group_in(data, name, f"{path}: data")
    layout = layout or layout_of(group_in(demo, "obs", where))
    return Demo(layout, *read_demo(demo, where, layout, action_dim), late=layout is LIBERO and stored_late(demo, where))


def cached_demos(path: Path) -> dict[str, Demo]:
    """The demos of a file by name if they are kept; otherwise none."""
    try:
        with np.load(_place(path)) as kept:
            about = parse_json(str(kept["about"]))
            layout = ROBOMIMIC if about["format"] == ROBOMIMIC.format else LIBERO
            ends = np.cumsum(about["lengths"])[:-1]
            parts = zip(np.split(kept["actions"], ends), np.split(kept["proprio"], ends), strict=True)
            each = zip(about["names"], parts, about["late"], strict=True)
            cameras = {camera: (int(size[0]), int(size[1])) for camera, size in about["cameras"].items()}
            return {name: Demo(layout, *numbers, cameras, late) for name, numbers, late in each}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
    ):  # absent or incomplete
        return {}


def cache_demos(path: Path, demos: dict[str, Demo]) -> None:
    """Keep all demos of a file if there are many and all are of one kind."""
    if len(demos) < _FEW:
        return
    one = next(iter(demos.values()))
    if any((demo.layout, demo.cameras) != (one.layout, one.cameras) for demo in demos.values()):
        return
    with readable(str(path)), open_file(path) as file:
        if leads_elsewhere(file):  # the target may change while this file does not
            return
    about = {
        "format": one.layout.format,
        "cameras": one.cameras,
        "names": list(demos),
        "lengths": [len(demo.actions) for demo in demos.values()],
        "late": [demo.late for demo in demos.values()],
    }
    place = _place(path)
    try:
        with atomic_path(place) as partial, partial.open("wb") as file:
            np.savez(
                file,
                about=json.dumps(about),
                actions=np.concatenate([demo.actions for demo in demos.values()]),
                proprio=np.concatenate([demo.proprio for demo in demos.values()]),
            )
    except OSError as error:
        logger.info("The numbers of %s are not kept: %s cannot be written (%s).", path, place, error.strerror)


def cache_many(files: Sequence[Path], action_dim: int) -> None:
    """Read files that are not kept yet in separate processes if they have many demos. Errors are left to whoever reads
    the file next."""
    if multiprocessing.current_process().daemon:  # daemons may not start processes
        return
    missing = [file for file in files if not _place(file).is_file()]
    if len(missing) > 1 and sum(map(_count, missing)) >= _MANY:
        jobs = [(file, action_dim) for file in missing]
        run_jobs(f"Reading {files[0].parent.name}", len(jobs), jobs, _read_and_cache, _nothing, ())


def _read_and_cache(job: tuple[Path, int]) -> None:
    path, action_dim = job
    try:
        with readable(str(path)), open_file(path) as file:
            data = group_in(file, "data", str(path))
            cache_demos(
                path, {name: read_whole_demo(data, name, path, None, action_dim) for name in demo_names(data, path)}
            )
    except InputError:
        return


def _nothing() -> None:
    """No start-up work."""


def _count(path: Path) -> int:
    try:
        with readable(str(path)), open_file(path) as file:
            return len(group_in(file, "data", str(path)))
    except InputError:
        return 0


def _place(path: Path) -> Path:
    """Return where a file's numbers are kept; the name is derived from the file, its size and its modification time."""
    stat = path.stat()
    key = repr((_FORMAT, str(path.resolve()), stat.st_size, stat.st_mtime_ns))
    return cache_root() / "hdf5" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
