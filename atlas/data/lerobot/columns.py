"""A LeRobot dataset's numbers, converted to Atlas's form once and mapped into memory from then on.

They are kept in the cache, in a folder of .npy files whose name is derived from their sources. Each row is a frame;
episodes follow one another in the dataset's order.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from atlas.config.action_sections import SourceActionsConfig
from atlas.data.caches.arrays import map_array
from atlas.data.hdf5.gripper_values import is_zero_to_one, open_and_closed
from atlas.data.lerobot.action_columns import convert, convert_state, gripper_fits, source_column
from atlas.data.lerobot.episodes import TASK_KEY, Episodes
from atlas.data.lerobot.features import Features
from atlas.data.lerobot.info import Info
from atlas.data.lerobot.tables import is_list, most_rows, open_parquet, readable_parquet
from atlas.data.origin import mend
from atlas.errors import InputError
from atlas.system.documents import read_json
from atlas.system.files import partial_folder, write_json
from atlas.system.progress import progress_bar

FORMAT = 3  # of the folder; part of its name
logger = logging.getLogger(__name__)
_NOTES = "notes.json"  # written last: what was noticed while the numbers were read
_SHOWN_FROM_FILES = 50  # fewer are read too fast for a progress bar
_OWN = ("timestamp", "episode_index", "frame_index", "task_index")
_SAME_TIME = 1e-4  # seconds
_REWARD, _SUCCESS = "next.reward", "next.success"


@dataclass(frozen=True)
class Columns:
    """All frames of a dataset, mapped into memory: float32, one row per frame."""

    action: np.ndarray  # [frames, A], in the ActionSpec's units
    proprio: np.ndarray  # [frames, P]
    timestamp: np.ndarray  # [frames], seconds into the episode
    reward: np.ndarray | None  # [frames]; None if the dataset has none
    success: np.ndarray | None  # [frames], 0 or 1; None if the dataset has none
    task: np.ndarray | None  # [frames], index into the episodes' tasks; None if each episode has one
    notes: list[str]  # what a user should know about how they were read


def open_columns(folder: Path, root: Path, info: Info, features: Features, episodes: Episodes) -> Columns:
    """The columns in the cache's `folder`, created first if it does not exist.

    Raises InputError that names file and column if data files are missing, damaged, or not what the metadata says.
    """
    if not (folder / _NOTES).is_file():
        _make(folder, root, info, features, episodes)
    try:
        return _mapped(folder, int(episodes.length.sum()))
    except (OSError, ValueError, LookupError, TypeError):
        logger.warning("%s was damaged, and is made again.", folder)
        (folder / _NOTES).unlink(missing_ok=True)
    _make(folder, root, info, features, episodes)
    return _mapped(folder, int(episodes.length.sum()))


def _mapped(folder: Path, frames: int) -> Columns:
    arrays = {path.stem: np.asarray(map_array(path)) for path in folder.glob("*.npy")}
    if any(len(array) != frames for array in arrays.values()):
        raise ValueError("a column has another length")
    notes = read_json(folder / _NOTES)
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError("the notes are none")
    return Columns(
        action=arrays["action"],
        proprio=arrays["proprio"],
        timestamp=arrays["timestamp"],
        reward=arrays.get("reward"),
        success=arrays.get("success"),
        task=arrays.get("task"),
        notes=notes,
    )


def _make(folder: Path, root: Path, info: Info, features: Features, episodes: Episodes) -> None:
    """Fill the folder under another name and rename it: it appears complete or not at all."""
    try:
        with partial_folder(folder) as partial:
            write_json(partial / _NOTES, _write(partial, root, info, features, episodes))
            if folder.exists() and not (folder / _NOTES).is_file():
                shutil.rmtree(folder)  # a part of it has been removed
            try:
                partial.rename(folder)
            except OSError:
                if not (folder / _NOTES).is_file():  # otherwise another process was faster
                    raise
    except OSError as error:
        raise InputError(
            f"The numbers of {root} cannot be stored in {folder.parent} ({error.strerror}); set ATLAS_CACHE_DIR to a "
            "writable folder with enough space."
        ) from None


def _write(folder: Path, root: Path, info: Info, features: Features, episodes: Episodes) -> list[str]:
    """Read all data files, check them against the metadata, and write the columns; returns notes."""
    frames, most = int(episodes.length.sum()), sum(most_rows(root / name) for name in episodes.files)
    if frames > most:  # checked before space is allocated for them
        raise InputError(
            f"{root}: according to the metadata its {len(episodes.files)} data files hold {frames} rows. {mend(root)}"
        )
    parts = {"proprio": [f.key for f in features.proprio], "timestamp": ["timestamp"]}
    parts |= {name: [key] for name, key in (("reward", _REWARD), ("success", _SUCCESS)) if _is_scalar(info, key)}
    widths = {"proprio": features.stored_proprio_dim}
    out: dict[str, np.ndarray] = {
        name: _create(folder, name, (frames, widths[name]) if name in widths else (frames,))
        for name in parts
        if name != "proprio" or not features.rotations
    }
    if features.rotations:  # turned when all of it is here
        out["proprio"] = np.empty((frames, features.stored_proprio_dim), np.float32)
    tasks = _create(folder, "task", (frames,)) if episodes.several_tasks else None
    source_actions = np.empty((frames, features.action.shape[0]), np.float32)
    first = np.cumsum(episodes.length) - episodes.length
    by_file = np.lexsort((episodes.row, episodes.file))
    bounds = np.searchsorted(episodes.file[by_file], np.arange(len(episodes.files) + 1))
    title = f"Reading {root.name}" if len(episodes.files) >= _SHOWN_FROM_FILES else None
    with progress_bar(title, len(episodes.files)) as advance:
        for number, name in enumerate(episodes.files):
            here = by_file[bounds[number] : bounds[number + 1]]
            keys_read = [episodes.task_key, *features.action_keys, *(key for keys in parts.values() for key in keys)]
            file = DataFile(root / name, info, keys_read).only(episodes.rows_in_file(here))
            rows, found = _runs(first[here], episodes.length[here]), file.check(episodes, here)
            if tasks is not None:
                tasks[rows] = found
            source_actions[rows] = file.numbers(features.action_keys)
            for column, keys in parts.items():
                values = file.numbers(keys)
                out[column][rows] = values if out[column].ndim == 2 else values[:, 0]
            advance(1)
    rows_of = [slice(start, start + n) for start, n in zip(first, episodes.length, strict=True)]
    proprio = [np.asarray(out["proprio"][rows]) for rows in rows_of]
    actions, notes = _convert(source_actions, rows_of, proprio, features, info)
    _create(folder, "action", actions.shape)[:] = actions
    if features.rotations:
        turned = _turned(out["proprio"], rows_of, features, info)
        out["proprio"] = _create(folder, "proprio", turned.shape)
        out["proprio"][:] = turned
    for array in (*out.values(), *([] if tasks is None else [tasks])):
        assert isinstance(array, np.memmap)
        array.flush()
    return notes


def _create(folder: Path, name: str, shape: tuple[int, ...]) -> np.memmap:
    path = folder / f"{name}.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    if hasattr(os, "posix_fallocate"):  # raises an error if the disk is full, which would later end the process
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _is_scalar(info: Info, key: str) -> bool:
    return key in info.features and info.features[key].is_vector and info.features[key].shape == (1,)


def _runs(starts: np.ndarray, lengths: np.ndarray) -> slice | np.ndarray:
    """The rows of episodes that begin at `starts`; a slice if they follow one another."""
    if (starts[1:] == starts[:-1] + lengths[:-1]).all():
        return slice(int(starts[0]), int(starts[-1] + lengths[-1]))
    return np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])


def _convert(
    values: np.ndarray, rows_of: Sequence[slice], proprio: Sequence[np.ndarray], features: Features, info: Info
) -> tuple[np.ndarray, list[str]]:
    """Actions in Atlas's units, and what was noticed. rows_of, proprio: one entry per episode.

    Raises InputError if a gripper's values are implausible.
    """
    source, notes = features.source, []
    if source.groups is None and not features.gripper_stated and is_zero_to_one(values[:, source.gripper]):
        source, note = _zero_to_one(values, rows_of, proprio, features, info)
        notes.append(note)
    if features.robot is not None:
        features.robot.check(values, features.action_spec.names, str(info.root))
    converted = convert(values, source, rows_of)
    slack = {} if features.robot is None else {"slack": features.robot.slack}
    ends = "open and closed of its group" if source.groups is not None else "gripper_open and gripper_closed"
    for dimension, gripper in features.action_spec.grippers:
        if not gripper_fits(converted[:, dimension], gripper, **slack):
            opened, closed = gripper.open, gripper.closed
            if source.groups is None:
                opened, closed = source.gripper_open, source.gripper_closed
            column = source_column(source, dimension)
            raise InputError(
                f"{info.root}: {_span(values, column, features)}, but is read as {opened:g} (open) to {closed:g} "
                f"(closed). Say what it is in data.features.action_spec: {ends}."
            )
    return converted, notes


def _turned(values: np.ndarray, rows_of: Sequence[slice], features: Features, info: Info) -> np.ndarray:
    """The proprio with its rotations in the forms that they are read into. Raises InputError for one that is none."""
    for rotation in features.rotations:
        wrong = np.flatnonzero(~np.isfinite(values[:, slice(*rotation.columns)]).all(1))
        if len(wrong):
            episode = next(number for number, rows in enumerate(rows_of) if rows.start <= wrong[0] < rows.stop)
            raise InputError(
                f"{info.root}: in episode {episode} the proprio's dimensions {list(rotation.columns)}, which "
                "data.features.proprio_rotations calls a rotation, hold numbers that are not finite."
            )
    return convert_state(values, features.rotations, rows_of)


def _zero_to_one(
    values: np.ndarray, rows_of: Sequence[slice], proprio: Sequence[np.ndarray], features: Features, info: Info
) -> tuple[SourceActionsConfig, str]:
    """The source with the end values of its one gripper, which goes from 0 to 1, and how they were found. Raises
    InputError."""
    source, gripper = features.source, values[:, features.source.gripper]
    span = _span(values, source.gripper, features)
    ends, why = open_and_closed([gripper[rows] for rows in rows_of], proprio), "judging by the fingers"
    if ends is None and features.libero is not None:
        ends, why = (1.0, 0.0), "as in OpenVLA's loader"
    if ends is None:
        raise InputError(
            f"{info.root}: {span}, but LIBERO's is -1 (open) to 1 (closed). Say what it is: "
            "data.features.action_spec={gripper_open: 1, gripper_closed: 0}, or the other way round."
        )
    found = source.model_copy(update={"gripper_open": ends[0], "gripper_closed": ends[1]})
    note = f"{span}: read {why}, {ends[0]:g} open and {ends[1]:g} closed, and mapped to -1 open, 1 closed."
    return found, note


def _span(values: np.ndarray, column: int, features: Features) -> str:
    low, high = float(values[:, column].min()), float(values[:, column].max())
    return f"the gripper, dimension {column} of '{features.action.key}', lies within [{low:g}, {high:g}]"


class DataFile:
    """The numbers of one data file; its images are not read."""

    def __init__(self, path: Path, info: Info, keys: Sequence[str]) -> None:
        self._path, self._info = path, info
        columns = list(dict.fromkeys([*_OWN, *keys]))
        with readable_parquet(path):
            file = open_parquet(path)
            lacking = [key for key in columns if key not in file.schema_arrow.names]
            if lacking:
                raise InputError(f"{path} lacks the column '{lacking[0]}', which {info.path} has.")
            self._table = file.read(columns=columns)
            self.all_rows = self._table.num_rows
            self._episodes = self._all_episodes = self._own("episode_index")

    def only(self, rows: np.ndarray | None) -> DataFile:
        """The file with some of its rows, int64 [n], in place of all; None for all. Raises InputError."""
        if rows is None:
            return self
        if len(rows) and rows.max() >= self.all_rows:
            raise InputError(
                f"{self._path} has {self.all_rows} rows, but the metadata refers to row {rows.max()}. {self._mend}"
            )
        part = copy.copy(self)
        with readable_parquet(self._path):
            part._table, part._episodes = self._table.take(rows), self._all_episodes[rows]
        return part

    def check(self, episodes: Episodes, here: np.ndarray) -> np.ndarray:
        """Check that the file has the rows of the episodes `here`, in the right order, and no other rows of theirs;
        return each row's instruction, int64 [rows], an index into the episodes' tasks.

        Unless some episodes are left out, also check that it has no other rows at all: an episode may have been
        recorded twice, and nothing says which take was meant to be kept.
        """
        lengths, numbers = episodes.length[here], episodes.number[here]
        of_file = int(episodes.file_rows[episodes.file[here[0]]])
        moved = not episodes.partial and (episodes.row[here] != np.cumsum(lengths) - lengths).any()
        if not episodes.partial and (self.all_rows != of_file or moved):
            raise InputError(
                f"{self._path} has {self.all_rows} rows, but according to the metadata its episodes have {of_file}. "
                f"{self._mend}"
            )
        ordered = np.sort(self._all_episodes)
        counts = np.searchsorted(ordered, numbers, "right") - np.searchsorted(ordered, numbers, "left")
        if (counts != lengths).any():
            wrong = int(np.flatnonzero(counts != lengths)[0])
            raise InputError(
                f"{self._path} has {counts[wrong]} rows of episode {numbers[wrong]}, but according to the metadata the "
                f"episode has {lengths[wrong]} frames. {self._mend}"
            )
        task = self._tasks(episodes, here)
        expected_task = np.repeat(episodes.task[here], lengths)
        ends = np.cumsum(lengths)
        for place, end, length in zip(here, ends, lengths, strict=True):
            allowed = episodes.task_sets[place]
            rows = slice(end - length, end)
            if len(allowed) > 1:  # which of them it is, only the frame says
                expected_task[rows] = np.where(np.isin(task[rows], allowed), task[rows], -2)
            elif episodes.untold[place]:
                expected_task[rows] = task[rows]
        for key, found, expected in (
            ("episode_index", self._episodes, np.repeat(numbers, lengths)),
            ("frame_index", self._own("frame_index"), np.concatenate([np.arange(n) for n in lengths])),
            (episodes.task_key, task, expected_task),
        ):
            wrong_rows = np.flatnonzero(found != expected)
            if len(wrong_rows):
                episode = np.repeat(numbers, lengths)[wrong_rows[0]]
                raise InputError(
                    f"{self._path}: '{key}' of row {wrong_rows[0]} is {self._own(key)[wrong_rows[0]]:g}, which "
                    f"disagrees with what the metadata says about episode {episode}. {self._mend}"
                )
        return task

    def _tasks(self, episodes: Episodes, here: np.ndarray) -> np.ndarray:
        """int64 [rows]: each row's instruction, an index into the episodes' tasks; -1 for one that they do not know."""
        if episodes.task_spans is not None:
            return self._tasks_by_time(episodes, here)
        known = episodes.source_task
        found, which = np.unique(self._own(episodes.task_key), return_inverse=True)
        task = np.array([known.get(int(number), -1) for number in found], np.int64)[which]
        if episodes.task_key == TASK_KEY:
            return task
        unsaid = self._own(episodes.task_key) < 0
        return np.where(unsaid, np.repeat(episodes.task[here], episodes.length[here]), task)

    def _tasks_by_time(self, episodes: Episodes, here: np.ndarray) -> np.ndarray:
        assert episodes.task_spans is not None
        task = np.repeat(episodes.task[here], episodes.length[here])
        times, ends = self._own("timestamp").astype(np.float64), np.cumsum(episodes.length[here])
        for place, end in zip(here.tolist(), ends.tolist(), strict=True):
            rows, (starts, tasks) = slice(end - int(episodes.length[place]), end), episodes.task_spans[place]
            span = np.searchsorted(starts, times[rows] + _SAME_TIME, "right") - 1
            task[rows] = np.where(span >= 0, tasks[span] if len(tasks) else 0, task[rows])
        return task

    @property
    def _mend(self) -> str:
        return mend(self._path)

    def numbers(self, keys: Sequence[str]) -> np.ndarray:
        """float32 [rows, D]: columns side by side, all finite."""
        return np.concatenate([self._column(key) for key in keys], axis=1)

    def _column(self, key: str) -> np.ndarray:
        """float32 [rows, D], from numbers or from lists of D numbers."""
        width = math.prod(self._info.features[key].shape) if key in self._info.features else 1
        values, found = _flat(self._table.column(key)), f"of type {self._table.column(key).type}"
        if values is None or len(values) != self._table.num_rows * width:
            raise InputError(
                f"{self._path}: '{key}' is {found}, but {self._info.path} says {width} numbers per row and no nulls."
            )
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float32).reshape(-1, width)
        bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
        if len(bad):
            raise InputError(
                f"{self._path}: '{key}' holds values that are not finite, in {len(bad)} rows; the first is row "
                f"{bad[0]}. Repair the dataset, or leave the episode out."
            )
        return numbers

    def _own(self, key: str) -> np.ndarray:
        values = _flat(self._table.column(key))
        if values is None or len(values) != self._table.num_rows:
            raise InputError(
                f"{self._path}: '{key}' is of type {self._table.column(key).type}, expected one number per row."
            )
        return values


def _flat(column: pa.ChunkedArray) -> np.ndarray | None:
    """All numbers of a column of numbers or of equally long lists; None if there are nulls or other things."""
    parts = []
    for chunk in column.chunks:
        uneven = False
        if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            uneven = len(np.unique(np.diff(chunk.offsets.to_numpy()))) > 1
        values = chunk
        while is_list(values.type) and not values.null_count:  # a multi-dimensional array is a list of lists
            values = values.flatten()
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        kind = values.type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if uneven or not number or chunk.null_count or values.null_count:
            return None
        parts.append(values.to_numpy(zero_copy_only=False))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
