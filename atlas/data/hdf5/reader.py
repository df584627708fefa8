"""Reads HDF5 demonstrations in LIBERO's layout and in robomimic's: a file, a folder of them, or a folder of suites."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from atlas.data.caches.demo_cache import Demo, cache_demos, cache_many, cached_demos, demo_names, read_whole_demo
from atlas.data.caches.lru import LRUCache
from atlas.data.episode import Numbers, Side, images_by_episode
from atlas.data.hdf5.gripper_values import map_gripper, open_and_closed
from atlas.data.hdf5.layout import ROBOMIMIC, Layout, array_in, control_of, group_in, instruction_of, read_env_args
from atlas.data.hdf5.masks import sides_of
from atlas.data.hdf5.opening import Unavailable, find, numbers_in, offset_of, open_file, readable
from atlas.data.hdf5.texts import attribute_in
from atlas.data.noops import without_noops
from atlas.data.orientation import Orientation, turn_upright
from atlas.errors import InputError
from atlas.system.paths import files_below
from atlas.types import ActionSpec

logger = logging.getLogger(__name__)

HDF5_SUFFIXES = (".hdf5", ".h5")
_ATLAS_WORLDS = ("cubes",)  # names in env_args that Atlas has an adapter for
_KNOWN_PIECES = 100_000  # samples come from all episodes in turn, and looking into the file takes longer than reading
_OPEN_IMAGES = 64  # datasets of compressed images: HDF5 keeps up to a megabyte for each


class _Piece(NamedTuple):
    """The place of images [T, H, W, 3] in a file, in bytes."""

    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Demo:
    """The place of one episode: its file, its group's name, and which of its frames are kept."""

    file: int
    name: str
    task: int
    kept: np.ndarray | None  # int64 rows of its actions and states; None for all
    late: bool  # whether the observation before an action is in the row before it
    side: Side  # of the split, if the file itself assigns one

    @property
    def seen(self) -> np.ndarray | None:
        """int64: the rows of its observations; None for all."""
        return self.kept if self.kept is None or not self.late else self.kept - 1


class LiberoDataset:
    """Episodes of HDF5 files in LIBERO's or robomimic's layout, in the order of file names and then demo numbers.

    Actions are LIBERO's own (the default ActionSpec), so nothing is converted. Proprio [8] is the end effector's
    position and axis-angle and the two finger positions. If a file's rows hold the observation after their action
    (`stored_late`), each action is paired with the one before it, and the first row's action, which has none, is left
    out. Each process opens a file itself when it first reads from it. At the start everything but the images is read;
    of these, type and size are checked.

    Raises InputError that names the file and the key for a file that is truncated or damaged, lacks something, or
    holds another type, another shape or numbers that are not finite; with `skip_damaged` such files and episodes are
    left out, each with a warning.
    """

    proprio_dim = 8

    def __init__(
        self,
        path: Path,
        orientation: Orientation | None = None,
        drop_noops: bool = False,
        instruction: str | None = None,
        skip_damaged: bool = False,
    ) -> None:
        """instruction: for all episodes of files that have none."""
        self.path = path
        self.action_spec = ActionSpec()
        self.files = _find_files(path)
        self.tasks: list[str] = []
        self.cameras: list[str] = []
        self._sizes: dict[str, tuple[int, int]] = {}
        self.environment: str | None = None
        self._instruction, self._drop_noops, self._skip_damaged = instruction, drop_noops, skip_damaged
        self._layout: Layout | None = None
        self._demos: list[_Demo] = []
        self._read: list[Numbers] = []
        self._start()
        cache_many(self.files, self.action_spec.dim)
        try:
            for number, file in enumerate(self.files):
                self._read_file(number, file)
        finally:
            self.close()  # workers forked from here must not share open files
        if not self._demos:
            if not skip_damaged:
                raise InputError(f"{path} holds no episodes: no file in it has a demo.")
            raise InputError(f"{path} holds no episode that is not damaged; the warnings say what is wrong.")
        assert self._layout is not None
        if late := sum(demo.late for demo in self._demos):
            logger.info(
                "%s: in %d of %d episodes the observation in a row is the one after its action, as LIBERO's own script "
                "stores them; each action is paired with the one before it, and the first action is left out.",
                path,
                late,
                len(self._demos),
            )
        self.format = self._layout.format
        self.orientation: Orientation = orientation or self._layout.orientation
        self.fps = self.action_spec.control_hz
        self.lengths: np.ndarray = np.array([len(read.actions) for read in self._read], np.int64)
        self.task_of: np.ndarray = np.array([demo.task for demo in self._demos], np.int64)
        sides = np.array([demo.side for demo in self._demos], np.int8)
        self.sides: np.ndarray | None = sides if (sides != Side.UNSAID).any() else None
        self._first: np.ndarray = np.cumsum(self.lengths) - self.lengths
        self._map_grippers()
        self._numbers: Numbers = Numbers(*(np.concatenate(parts) for parts in zip(*self._read, strict=True)))
        self._read.clear()

    def __len__(self) -> int:
        return len(self._demos)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_handles", "_mapped", "_pieces", "_images", "_pid")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def episode(self, index: int) -> LiberoEpisode:
        return LiberoEpisode(self, index, self._demos[index])

    def numbers(self) -> Numbers:
        return self._numbers

    def rows(self, index: int) -> slice:
        """An episode's rows in `numbers`."""
        first = int(self._first[index])
        return slice(first, first + int(self.lengths[index]))

    def image_size(self, camera: str) -> tuple[int, int]:
        return self._sizes[camera]

    def fingerprint(self) -> str:
        """Changes with the files' names, sizes and modification times, and with how they are read."""
        digest = hashlib.sha256(repr((self.orientation, int(self.lengths.sum()), self.tasks)).encode())
        for file in self.files:
            stat = file.stat()
            digest.update(repr((file.name, stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()[:16]

    def close(self) -> None:
        """Close this process's file handles; they open again when needed."""
        self._pieces.clear()
        self._images.clear()
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        self._mapped.clear()

    def where(self, index: int) -> str:
        """An episode's place, for messages."""
        demo = self._demos[index]
        return f"{self.files[demo.file]}: data/{demo.name}"

    def group(self, index: int) -> h5py.Group:
        """An episode's group, in this process's own handle of the file."""
        demo = self._demos[index]
        return group_in(self._file(demo.file), f"data/{demo.name}", str(self.files[demo.file]))

    def images(self, camera: str, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3], upright."""
        return images_by_episode(self, camera, episodes, frames)

    def episode_images(self, index: int, camera: str, frames: Sequence[int]) -> np.ndarray:
        """uint8 [n, H, W, 3], upright: some frames of an episode."""
        seen = self._demos[index].seen
        rows = [int(f) if seen is None else int(seen[f]) for f in frames]
        with readable(f"{self.where(index)}, {camera}"):
            stored = self._stored_images(index, camera)
            return turn_upright(np.stack([stored[row] for row in rows]), self.orientation)

    def _start(self) -> None:
        self._handles: dict[int, h5py.File] = {}
        self._mapped: dict[int, np.memmap] = {}  # whole files: each takes a file descriptor
        self._pieces: LRUCache[tuple[int, str], _Piece | None] = LRUCache(_KNOWN_PIECES)
        self._images: LRUCache[tuple[int, str], h5py.Dataset] = LRUCache(_OPEN_IMAGES)  # those not stored in one piece
        self._pid = os.getpid()

    def _file(self, number: int) -> h5py.File:
        if self._pid != os.getpid():  # a forked worker: HDF5 handles must not be shared with the parent
            self._start()
        if number not in self._handles:
            self._handles[number] = open_file(self.files[number])
        return self._handles[number]

    def _array(self, index: int, camera: str) -> h5py.Dataset:
        """A camera's images of an episode, not read yet."""
        assert self._layout is not None
        observations = group_in(self.group(index), "obs", self.where(index), self._layout)
        key = self._layout.image_key(camera, list(observations))
        return array_in(observations, key, f"{self.where(index)}/obs", self._layout)

    def _piece(self, index: int, camera: str) -> _Piece | None:
        """Return where a camera's images of an episode lie in the file, if they are stored in one piece."""
        images = self._array(index, camera)
        offset = offset_of(images, self._file(self._demos[index].file))
        return None if offset is None else _Piece(offset, images.shape)

    def _stored_images(self, index: int, camera: str) -> Any:
        """[T, H, W, 3] as stored: memory-mapped if the file keeps it in one piece, otherwise HDF5's dataset."""
        number = self._demos[index].file
        self._file(number)  # first, so that nothing opened by another process is used
        piece = self._pieces.get((index, camera), lambda: self._piece(index, camera))
        if piece is None:
            return self._images.get((index, camera), lambda: self._array(index, camera))
        if number not in self._mapped:
            self._mapped[number] = np.memmap(self.files[number], np.uint8, "r")
        return np.asarray(self._mapped[number])[piece.offset : piece.offset + prod(piece.shape)].reshape(piece.shape)

    def _read_file(self, number: int, path: Path) -> None:
        """Register a file's episodes and read their numbers."""
        try:
            with readable(str(path)):
                data = group_in(self._file(number), "data", str(path))
                names = demo_names(data, path)
                if not names:
                    logger.warning("%s holds no episodes: data is empty.", path)
                    return
                instruction = instruction_of(data, path, self._instruction)
                env_args = read_env_args(data, path)
                sides = sides_of(self._file(number), names, path)
        except InputError as error:
            self._leave_out(error)
            return
        kept = cached_demos(path)
        read: dict[str, Demo] = {}
        before = len(self._demos)
        for name, side in sides.items():
            try:
                with readable(f"{path}: data/{name}"):
                    demo = kept.get(name) or read_whole_demo(data, name, path, self._layout, self.action_spec.dim)
                    self._add(number, name, demo, side, instruction, env_args)
                    read[name] = demo
            except InputError as error:
                self._leave_out(error)
        if len(self._demos) > before and env_args.get("env_name") in _ATLAS_WORLDS:
            self.environment = env_args["env_name"]
        if not kept and len(read) == len(names):
            cache_demos(path, read)

    def _add(self, number: int, name: str, demo: Demo, side: Side, instruction: str, env_args: dict[str, Any]) -> None:
        """Register an episode. Raises InputError if it does not fit those before it."""
        path, spec = self.files[number], self.action_spec
        where = f"{path}: data/{name}"
        rate = control_of(env_args, path) if demo.layout is ROBOMIMIC else ActionSpec().control_hz
        if not self._demos:
            self._layout, self.cameras, self._sizes = demo.layout, list(demo.cameras), demo.cameras
            self.action_spec = spec = replace(spec, control_hz=rate)
        elif demo.layout is not self._layout:
            raise InputError(f"{where} has {demo.layout.project}'s layout, but the first episode has another one.")
        elif list(demo.cameras) != self.cameras:
            raise InputError(
                f"{where}/obs has cameras {list(demo.cameras)}, while the first episode has {self.cameras}."
            )
        elif demo.cameras != self._sizes:
            raise InputError(
                f"{where}/obs has images of {_said(demo.cameras)}, while the first episode has {_said(self._sizes)}. "
                "Bring them to one size; files of one size each can be the sources of a mixture (data.datasets)."
            )
        elif rate != spec.control_hz:
            raise InputError(f"{path} was recorded at {rate:g} Hz, but the first file at {spec.control_hz:g} Hz.")
        kept = without_noops(demo.actions, spec) if self._drop_noops else None
        if demo.late:
            kept = np.arange(1, len(demo.actions)) if kept is None else kept[kept > 0]
        if kept is not None and not len(kept):
            raise InputError(f"{where} has no frame whose action does something; leave it out, or drop_noops.")
        if instruction not in self.tasks:
            self.tasks.append(instruction)
        place = _Demo(number, name, self.tasks.index(instruction), kept, demo.late, side)
        self._demos.append(place)
        actions, proprio = demo.actions.astype(np.float32), demo.proprio
        self._read.append(Numbers(actions, proprio) if kept is None else Numbers(actions[kept], proprio[place.seen]))

    def _map_grippers(self) -> None:
        """Map the grippers of files in which they go from 0 to 1 to -1 (open) and +1 (closed), and log it.

        Raises InputError if nothing tells which end is which.
        """
        ((gripper, _),) = self.action_spec.grippers
        of_file = np.array([demo.file for demo in self._demos])
        for number in np.unique(of_file).tolist():
            read = [self._read[episode] for episode in np.flatnonzero(of_file == number)]
            ends = open_and_closed([each.actions[:, gripper] for each in read], [each.proprio for each in read])
            if ends is None:
                raise InputError(
                    f"{self.files[number]}: the gripper's actions lie within [0, 1], but LIBERO's are -1 (open) to 1 "
                    "(closed). The fingers do not tell which end is which; map the actions where the file is made."
                )
            if ends == (-1.0, 1.0):
                continue
            logger.warning(
                "%s: the gripper's actions lie within [0, 1]; judging by the fingers, %g is open and %g closed, and "
                "they are mapped to -1 open, 1 closed.",
                self.files[number],
                *ends,
            )
            for each in read:
                each.actions[:, gripper] = map_gripper(each.actions[:, gripper], *ends)

    def _leave_out(self, error: InputError) -> None:
        """Warn that a file or an episode is left out. Raises the error if nothing may be left out."""
        if not self._skip_damaged or isinstance(error, Unavailable):
            raise error
        logger.warning("Left out: %s", error)


class LiberoEpisode:
    """One demo group; each part is read when it is first asked for."""

    def __init__(self, dataset: LiberoDataset, index: int, demo: _Demo) -> None:
        self._dataset, self._index, self._demo = dataset, index, demo
        self.instruction = dataset.tasks[dataset.task_of[index]]

    @property
    def actions(self) -> np.ndarray:
        return self._dataset.numbers().actions[self._dataset.rows(self._index)]

    @property
    def proprio(self) -> np.ndarray:
        return self._dataset.numbers().proprio[self._dataset.rows(self._index)]

    @cached_property
    def rewards(self) -> np.ndarray | None:
        rewards = self._optional("rewards")
        with np.errstate(over="ignore", invalid="ignore"):
            return None if rewards is None else rewards.astype(np.float32)

    @property
    def success(self) -> bool | None:
        return None if self.rewards is None else bool(self.rewards.any())

    @cached_property
    def sim_states(self) -> np.ndarray | None:
        return self._optional("states")

    @property
    def init_state(self) -> np.ndarray | None:
        if self._demo.late:  # the stored state is from before the action that is left out
            assert self.sim_states is not None
            return np.asarray(self.sim_states[0], np.float64)
        with readable(self._where):
            state = attribute_in(self._group, "init_state", self._where)
            if state is None and find(self._group, "states", self._where) is not None:
                states = array_in(self._group, "states", self._where)
                state = numbers_in(states, self._where)[0]  # robomimic: the very first state, whatever is kept
            return None if state is None else np.asarray(state, np.float64)

    @property
    def model_xml(self) -> str | None:
        with readable(self._where):
            xml = attribute_in(self._group, "model_file", self._where)
            return None if xml is None else xml.decode() if isinstance(xml, bytes) else str(xml)

    def __len__(self) -> int:
        return int(self._dataset.lengths[self._index])

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        """uint8 [n, H, W, 3], upright."""
        return self._dataset.episode_images(self._index, camera, frames)

    @property
    def _where(self) -> str:
        return self._dataset.where(self._index)

    @property
    def _group(self) -> h5py.Group:
        return self._dataset.group(self._index)

    def _optional(self, key: str) -> np.ndarray | None:
        """[T, …]: numbers that not every file has."""
        where = f"{self._where}/{key}"
        if find(self._group, key, self._where) is None:
            return None
        values = numbers_in(array_in(self._group, key, self._where), where)
        rows = len(self) if self._demo.kept is None else int(self._demo.kept[-1]) + 1
        if values.ndim == 0 or len(values) < rows or (self._demo.kept is None and len(values) > rows):
            raise InputError(f"{where} has shape {values.shape}, but the last frame of the episode is row {rows - 1}.")
        return values if self._demo.kept is None else values[self._demo.kept]


def _said(sizes: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{height} x {width} ({camera})" for camera, (height, width) in sizes.items())


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"There is no dataset at {path}. Give a LIBERO HDF5 file, or a folder of them, as data.path.")
    files = files_below(path, HDF5_SUFFIXES)
    if not files:
        raise InputError(f"The folder {path} holds no episodes: no .hdf5 file was found in it.")
    return files
