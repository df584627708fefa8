"""Reads LIBERO's HDF5 demonstrations: a file, a folder of them, or a folder of suites."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from atlas.data.libero_layout import (
    PROPRIO,
    array_in,
    environment_of,
    group_in,
    image_key,
    instruction_of,
    open_file,
    read_demo,
    readable,
)
from atlas.data.noops import without_noops
from atlas.data.orientation import Orientation, turn_upright
from atlas.errors import InputError
from atlas.types import ActionSpec

SOURCE_ORIENTATION: Orientation = "upside_down"  # as robosuite returns them, which is how LIBERO stores them
_FPS = 20.0
_ATLAS_WORLDS = ("cubes",)  # env_args names that Atlas has an adapter for


@dataclass(frozen=True)
class _Demo:
    """Where one episode is: file, group name, and which of its frames are kept."""

    file: int
    name: str
    task: int
    kept: np.ndarray | None  # int64 frames, None for all


class LiberoDataset:
    """Episodes of LIBERO-layout HDF5 files, in the order of file names and then demo numbers.

    Actions are LIBERO's own (the default ActionSpec), so nothing is converted. Proprio [8] is the end effector's
    position and axis-angle and the two finger positions. Files are opened when they are first read, by each process
    for itself. At the start all is read but the images, of which type and size are looked at.

    Raises InputError that names the file and the key for a file that is truncated or damaged, lacks something, or
    holds another type, another shape or numbers that are not finite.
    """

    format = "libero-hdf5"
    fps = _FPS
    proprio_dim = 8

    def __init__(self, path: Path, orientation: Orientation | None = None, drop_noops: bool = False) -> None:
        self.path = path
        self.orientation: Orientation = orientation or SOURCE_ORIENTATION
        self.action_spec = ActionSpec()
        self.files = _find_files(path)
        self.tasks: list[str] = []
        self.cameras: list[str] = []
        self.environment: str | None = None
        self._demos: list[_Demo] = []
        self._handles: dict[int, h5py.File] = {}
        self._stored: dict[tuple[int, str], Any] = {}  # (episode, camera): its images, not read yet
        self._pid = os.getpid()
        lengths: list[int] = []
        try:
            for number, file in enumerate(self.files):
                with readable(str(file)):
                    lengths += self._scan(number, file, drop_noops)
        finally:
            self.close()  # workers that are forked from here must not share open files
        self.lengths = np.array(lengths, np.int64)
        self.task_of = np.array([demo.task for demo in self._demos], np.int64)

    def __len__(self) -> int:
        return len(self._demos)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}, "_stored": {}}

    def episode(self, index: int) -> LiberoEpisode:
        demo = self._demos[index]
        where = f"{self.files[demo.file]}: data/{demo.name}"
        return LiberoEpisode(
            group=lambda: self._group(demo),
            where=where,
            instruction=self.tasks[demo.task],
            kept=demo.kept,
            stored_images=lambda camera: self._stored_images(index, camera),
            orientation=self.orientation,
        )

    def image_size(self, camera: str) -> tuple[int, int]:
        images = array_in(self._group(self._demos[0]), image_key(camera), str(self.files[0]))
        return int(images.shape[1]), int(images.shape[2])

    def fingerprint(self) -> str:
        """Changes with the files' names, sizes, times of change, and how they are read."""
        digest = hashlib.sha256(repr((self.orientation, int(self.lengths.sum()), self.tasks)).encode())
        for file in self.files:
            stat = file.stat()
            digest.update(repr((file.name, stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()[:16]

    def close(self) -> None:
        """Close this process's file handles; they open again when needed."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        self._stored.clear()

    def _file(self, number: int) -> h5py.File:
        if self._pid != os.getpid():  # a forked worker: HDF5 handles must not be shared with the parent
            self._handles, self._stored, self._pid = {}, {}, os.getpid()
        if number not in self._handles:
            self._handles[number] = open_file(self.files[number])
        return self._handles[number]

    def _group(self, demo: _Demo) -> h5py.Group:
        return self._file(demo.file)[f"data/{demo.name}"]

    def _stored_images(self, index: int, camera: str) -> Any:
        """[T, H, W, 3] as stored: memory-mapped where the file keeps it in one piece, else HDF5's dataset."""
        if (index, camera) not in self._stored:
            demo = self._demos[index]
            images = array_in(self._group(demo), image_key(camera), f"{self.files[demo.file]}: data/{demo.name}")
            offset = images.id.get_offset()  # None where it is chunked or compressed
            if offset is not None:
                images = np.memmap(self.files[demo.file], np.uint8, "r", offset, images.shape)
            self._stored[index, camera] = images
        return self._stored[index, camera]

    def _scan(self, number: int, path: Path, drop_noops: bool) -> list[int]:
        """Register a file's episodes; returns their lengths."""
        data = group_in(self._file(number), "data", str(path))
        instruction = instruction_of(data, path)
        if instruction not in self.tasks:
            self.tasks.append(instruction)
        names = sorted((n for n in data if re.fullmatch(r"demo_\d+", n)), key=lambda n: int(n.split("_")[1]))
        if not names:
            raise InputError(f"{path} holds no episodes: data has no groups demo_0, demo_1 and so on.")
        lengths = []
        for name in names:
            where = f"{path}: data/{name}"
            actions, cameras = read_demo(group_in(data, name, f"{path}: data"), where, self.action_spec.dim)
            if not self._demos:
                self.cameras = cameras
            elif cameras != self.cameras:
                raise InputError(f"{where}/obs has cameras {cameras}, while the first episode has {self.cameras}.")
            kept = without_noops(actions, self.action_spec) if drop_noops else None
            length = len(actions) if kept is None else len(kept)
            if length == 0:
                raise InputError(f"{where} has no frame whose action does something; leave it out, or drop_noops.")
            self._demos.append(_Demo(number, name, self.tasks.index(instruction), kept))
            lengths.append(length)
        world = environment_of(data, path)
        if world in _ATLAS_WORLDS:
            self.environment = world
        return lengths


class LiberoEpisode:
    """One demo group; each part is read when it is first asked for."""

    def __init__(
        self,
        group: Callable[[], h5py.Group],
        where: str,
        instruction: str,
        kept: np.ndarray | None,
        stored_images: Callable[[str], Any],
        orientation: Orientation,
    ) -> None:
        self._open_group, self._where, self._kept = group, where, kept
        self._stored_images, self._orientation = stored_images, orientation
        self.instruction = instruction

    @cached_property
    def _group(self) -> h5py.Group:
        return self._open_group()

    @cached_property
    def actions(self) -> np.ndarray:
        return self._column("actions").astype(np.float32)

    @cached_property
    def proprio(self) -> np.ndarray:
        return np.concatenate([self._column(key) for key in PROPRIO], axis=1).astype(np.float32)

    @cached_property
    def rewards(self) -> np.ndarray | None:
        rewards = self._optional("rewards")
        return None if rewards is None else rewards.astype(np.float32)

    @property
    def success(self) -> bool | None:
        return None if self.rewards is None else bool(self.rewards.any())

    @cached_property
    def sim_states(self) -> np.ndarray | None:
        return self._optional("states")

    @property
    def init_state(self) -> np.ndarray | None:
        with readable(self._where):
            state = self._group.attrs.get("init_state")
            return None if state is None else np.asarray(state, np.float64)

    @property
    def model_xml(self) -> str | None:
        with readable(self._where):
            xml = self._group.attrs.get("model_file")
            return None if xml is None else str(xml)

    def __len__(self) -> int:
        return len(self.actions)

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        """uint8 [n, H, W, 3], upright."""
        stored = self._stored_images(camera)
        rows = [int(f) if self._kept is None else int(self._kept[f]) for f in frames]
        with readable(f"{self._where}/{image_key(camera)}"):
            frames_as_stored = np.stack([stored[row] for row in rows])
        return turn_upright(frames_as_stored, self._orientation)

    def _optional(self, key: str) -> np.ndarray | None:
        with readable(self._where):
            return self._column(key) if key in self._group else None

    def _column(self, key: str) -> np.ndarray:
        with readable(f"{self._where}/{key}"):
            values = np.asarray(array_in(self._group, key, self._where))
            return values if self._kept is None else values[self._kept]


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"There is no dataset at {path}. Give a LIBERO HDF5 file, or a folder of them, as data.path.")
    files = sorted((*path.rglob("*.hdf5"), *path.rglob("*.h5")))
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise InputError(f"The folder {path} holds no episodes: no .hdf5 file was found in it.")
    return files
