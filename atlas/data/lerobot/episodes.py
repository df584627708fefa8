"""Where a LeRobot dataset's episodes are: which rows of which data file, and where in which video."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from atlas.data.lerobot.info import Info
from atlas.errors import InputError, first_line


@dataclass(frozen=True)
class VideoPlaces:
    """Where each episode is in a camera's videos."""

    files: list[str]  # relative to the dataset's folder
    file: np.ndarray  # int64 [episodes], index into files
    start: np.ndarray  # float64 [episodes], seconds into the file


@dataclass(frozen=True)
class Episodes:
    """All episodes, by number. Arrays are int64 [episodes]."""

    tasks: list[str]  # the distinct instructions
    task: np.ndarray  # index into tasks
    source_task: Mapping[int, int]  # {the dataset's own number of a task: index into tasks}
    number: np.ndarray  # the dataset's own number of an episode
    length: np.ndarray  # frames
    files: list[str]  # data files, relative to the dataset's folder
    file: np.ndarray  # index into files
    row: np.ndarray  # the first row in the file
    videos: Mapping[str, VideoPlaces]  # by key
    partial: bool = False  # whether some of the dataset's episodes are left out

    def all_files(self) -> list[str]:
        """Every data file and video, relative to the dataset's folder."""
        return [*self.files, *(file for places in self.videos.values() for file in places.files)]

    def rows_in_file(self, here: np.ndarray) -> np.ndarray | None:
        """The rows int64 [n] of the episodes `here`, which are in one data file; None where these are all it has."""
        if not self.partial:
            return None
        return np.concatenate([np.arange(self.row[i], self.row[i] + self.length[i]) for i in here])

    def only(self, kept: np.ndarray) -> Episodes:
        """Some of the episodes, int64 [n] in order, and of tasks and files those that they have."""
        tasks, task = np.unique(self.task[kept], return_inverse=True)
        files, file = np.unique(self.file[kept], return_inverse=True)
        place = {int(task): i for i, task in enumerate(tasks)}
        videos = {}
        for key, places in self.videos.items():
            used, which = np.unique(places.file[kept], return_inverse=True)
            videos[key] = VideoPlaces([places.files[i] for i in used], which, places.start[kept])
        return Episodes(
            tasks=[self.tasks[i] for i in tasks],
            task=task,
            source_task={number: place[i] for number, i in self.source_task.items() if i in place},
            number=self.number[kept],
            length=self.length[kept],
            files=[self.files[i] for i in files],
            file=file,
            row=self.row[kept],
            videos=videos,
            partial=True,
        )


def read_episodes(root: Path, info: Info, video_keys: Sequence[str]) -> Episodes:
    """Read the metadata of all episodes, and where `video_keys` are. Raises InputError that names file and key."""
    read = _read_version_2 if info.one_file_an_episode else _read_version_3
    episodes = read(root, info, video_keys)
    for what, said, found in (
        ("total_episodes", info.episodes, len(episodes.length)),
        ("total_frames", info.frames, int(episodes.length.sum())),
    ):
        if said != found:
            raise InputError(
                f"{info.path}: {what} is {said}, and the episodes' metadata has {found}; the dataset is incomplete or "
                "was being written. Fetch it again."
            )
    return episodes


def missing_files(root: Path, files: Sequence[str]) -> list[str]:
    """Those of `files` that are not in the folder, found by listing it: datasets may have 100,000s of files."""
    there: dict[str, set[str]] = {}
    missing = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder not in there:
            there[folder] = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        if name not in there[folder]:
            missing.append(file)
    return missing


def _read_version_3(root: Path, info: Info, video_keys: Sequence[str]) -> Episodes:
    """Several episodes a file; the metadata in Parquet files."""
    meta = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not meta:
        raise InputError(
            f"{root}/meta/episodes holds no Parquet file, which would say where the episodes are. Fetch it again."
        )
    places = {key: [f"videos/{key}/{part}" for part in ("chunk_index", "file_index")] for key in video_keys}
    starts = {key: f"videos/{key}/from_timestamp" for key in video_keys}
    integers = ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index"]
    integers += ["dataset_to_index", *(name for names in places.values() for name in names)]
    rows = _Rows(meta, _parquet, integers, list(starts.values()))
    first, length = rows.numbers["dataset_from_index"], rows.numbers["length"]
    wrong = np.flatnonzero(rows.numbers["dataset_to_index"] - first != length)
    if len(wrong):
        raise InputError(
            f"{root}/meta/episodes: episode {rows.numbers['episode_index'][wrong[0]]} has length {length[wrong[0]]}, "
            f"and its rows are {first[wrong[0]]} to {rows.numbers['dataset_to_index'][wrong[0]]}."
        )
    files, file = _numbered(rows.numbers["data/chunk_index"], rows.numbers["data/file_index"], info.data_file)
    first_of_file = np.full(len(files), np.iinfo(np.int64).max)
    np.minimum.at(first_of_file, file, first)
    return Episodes(
        **_tasks(root / "meta" / "tasks.parquet", _parquet, rows.tasks),
        number=rows.numbers["episode_index"],
        length=length,
        files=files,
        file=file,
        row=first - first_of_file[file],
        videos={
            key: VideoPlaces(
                *_numbered(rows.numbers[chunk], rows.numbers[index], functools.partial(info.video_file, key)),
                start=rows.numbers[starts[key]],
            )
            for key, (chunk, index) in places.items()
        },
    )


def _numbered(chunk: np.ndarray, index: np.ndarray, name: Callable[..., str]) -> tuple[list[str], np.ndarray]:
    """The distinct files among [episodes] pairs of numbers, and which of them each episode is in."""
    width = int(index.max()) + 1
    pairs, which = np.unique(chunk * width + index, return_inverse=True)
    return [name(chunk_index=int(p) // width, file_index=int(p) % width) for p in pairs], which.reshape(-1)


def _read_version_2(root: Path, info: Info, video_keys: Sequence[str]) -> Episodes:
    """One file an episode, whose time starts at 0; the metadata in JSON lines."""
    rows = _Rows([root / "meta" / "episodes.jsonl"], _json_lines, ["episode_index", "length"], [])
    numbers = rows.numbers["episode_index"].tolist()
    each, zeros = np.arange(len(numbers)), np.zeros(len(numbers), np.int64)

    def files(name: Callable[..., str]) -> list[str]:
        return [name(episode_chunk=number // info.chunk, episode_index=number) for number in numbers]

    return Episodes(
        **_tasks(root / "meta" / "tasks.jsonl", _json_lines, rows.tasks),
        number=rows.numbers["episode_index"],
        length=rows.numbers["length"],
        files=files(info.data_file),
        file=each,
        row=zeros,
        videos={
            key: VideoPlaces(files(functools.partial(info.video_file, key)), each, zeros.astype(np.float64))
            for key in video_keys
        },
    )


class _Rows:
    """What the metadata says of the episodes, by their numbers. Raises InputError that names file and column."""

    def __init__(self, paths: Sequence[Path], read: _Read, integers: Sequence[str], floats: Sequence[str]) -> None:
        tables = [read(path, [*integers, *floats, "tasks"]) for path in paths]
        each = list(zip(tables, paths, strict=True))
        numbers = {
            key: np.concatenate([_numbers(table, key, dtype, path) for table, path in each])
            for keys, dtype in ((integers, np.int64), (floats, np.float64))
            for key in keys
        }
        order = np.argsort(numbers["episode_index"], kind="stable")
        self.numbers = {key: values[order] for key, values in numbers.items()}
        tasks = [task for table, path in each for task in _only_tasks(table, path)]
        self.tasks = [tasks[i] for i in order]
        index = self.numbers["episode_index"]
        if not len(index) or index[0] < 0 or (np.diff(index) == 0).any() or self.numbers["length"].min() < 1:
            raise InputError(f"{paths[0].parent}: episodes must have numbers of their own and a length above 0.")


def _tasks(path: Path, read: _Read, texts: Sequence[str]) -> dict[str, Any]:
    """What `Episodes` says of tasks. path: where the dataset numbers them; texts: those of the episodes."""
    table = read(path, ["task_index"])
    columns = [name for name in table.column_names if pa.types.is_string(table.column(name).type)]
    if not columns:
        raise InputError(f"{path} has no column of text, which would be the tasks.")
    column = "task" if "task" in columns else columns[0]  # older writers leave the index unnamed
    numbers = _numbers(table, "task_index", np.int64, path).tolist()
    known = dict(sorted(zip(numbers, table.column(column).to_pylist(), strict=True)))
    used = set(texts)
    tasks = list(dict.fromkeys(text for text in known.values() if text in used))
    place = {text: i for i, text in enumerate(tasks)}
    if unknown := sorted(used - set(tasks)):
        raise InputError(f"{path} lacks the task '{unknown[0]}', which an episode has.")
    source = {number: place[text] for number, text in known.items() if text in place}
    return {"tasks": tasks, "task": np.array([place[text] for text in texts], np.int64), "source_task": source}


def _only_tasks(table: pa.Table, path: Path) -> Sequence[str]:
    """The one task of each episode, from a column of lists."""
    column = table.column("tasks")
    kind = column.type
    if not pa.types.is_list(kind) or not pa.types.is_string(kind.value_type):
        raise InputError(f"{path}: 'tasks' is of type {kind}, expected lists of text.")
    counts = pc.list_value_length(column).to_numpy()
    if not (counts == 1).all():  # none, or two, or the same one twice
        return [_only_task(tasks, path, row) for row, tasks in enumerate(column.to_pylist())]
    return pc.list_flatten(column).to_pylist()


def _only_task(tasks: Sequence[str] | None, path: Path, row: int) -> str:
    if tasks is None or len(set(tasks)) != 1:
        raise InputError(
            f"{path}: the episode in row {row} has {len(tasks or [])} tasks, and Atlas trains on one instruction an "
            "episode. Split the episode where the task changes, or leave it out."
        )
    return tasks[0]


_Read = Callable[[Path, Sequence[str]], pa.Table]


def _json_lines(path: Path, columns: Sequence[str]) -> pa.Table:
    """A table of the objects in a file's lines. Raises InputError."""
    try:
        return _with_columns(pa_json.read_json(path), columns, path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; fetch it again.") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as lines of JSON ({first_line(error)}); fetch it again.") from None


def _parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    """These columns of a file, and those of text where they are in its index. Raises InputError."""
    try:
        # LeRobot's recorder leaves thousands of row groups a file, which take a third longer to read ahead.
        file = pq.ParquetFile(path, pre_buffer=False)
        texts = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
        there = [name for name in (*columns, *texts) if name in file.schema_arrow.names]
        return _with_columns(file.read(columns=there), columns, path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; fetch it again.") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet ({first_line(error)}); fetch it again.") from None


def _with_columns(table: pa.Table, columns: Sequence[str], path: Path) -> pa.Table:
    lacking = [name for name in columns if name not in table.column_names]
    if lacking:
        raise InputError(f"{path} lacks the column '{lacking[0]}'.")
    return table


def _numbers(table: pa.Table, key: str, dtype: Any, path: Path) -> np.ndarray:
    """A column of numbers [rows]. Raises InputError."""
    column = table.column(key)
    whole = pa.types.is_integer(column.type)
    if column.null_count or not (whole or (dtype is np.float64 and pa.types.is_floating(column.type))):
        raise InputError(f"{path}: '{key}' is of type {column.type} with {column.null_count} nulls, expected numbers.")
    return column.to_numpy().astype(dtype)
