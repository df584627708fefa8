"""The places of a LeRobot dataset's episodes: which rows of which data file, and where in which video."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from atlas.data.lerobot.info import Info
from atlas.data.lerobot.tables import is_text, json_lines, lists_of_texts, numbers_of, parquet_table, texts_of
from atlas.data.origin import mend
from atlas.errors import InputError

# Marks that GR00T's datasets store beside an episode's instruction, and which are not instructions.
_VALID, _INVALID = "valid", "invalid"
TASK_KEY, _UNNAMED_INDEX = "task_index", "__index_level_0__"
_MOST_FRAMES = 10**8  # per episode; a larger number is damaged


@dataclass(frozen=True)
class VideoPlaces:
    """The place of each episode in a camera's videos."""

    files: list[str]  # relative to the dataset's folder
    file: np.ndarray  # int64 [episodes], index into files; -1 if the metadata does not say
    start: np.ndarray  # float64 [episodes], seconds into the file; NaN if the metadata does not say


# The seconds from which on an episode's frames have another instruction, float64 [n] in order, and which, int64 [n].
TaskSpans = tuple[np.ndarray, np.ndarray]
KnownTasks = tuple[Path, dict[int, str]]  # the file that numbers a dataset's instructions, and those by their numbers


@dataclass(frozen=True)
class Episodes:
    """All episodes, by number. Arrays are int64 [episodes]."""

    tasks: list[str]  # the distinct instructions
    task: np.ndarray  # index into tasks: the one, or the first that is said of the episode
    task_sets: list[tuple[int, ...]]  # the instructions that an episode's frames may have; where there are several, the
    # data says which frame has which
    untold: np.ndarray  # bool [episodes]: nothing is said of its task, so that its frames' numbers mean nothing
    source_task: Mapping[int, int]  # {the dataset's own number, which frames have: index into tasks}
    number: np.ndarray  # the dataset's own number of an episode
    length: np.ndarray  # frames
    files: list[str]  # data files, relative to the dataset's folder
    file: np.ndarray  # index into files
    file_rows: np.ndarray  # int64 [files]: how many rows of a file belong to episodes, including those left out
    row: np.ndarray  # the first row in the file
    videos: Mapping[str, VideoPlaces]  # by key
    task_key: str = TASK_KEY  # the column that numbers the frames' instructions
    task_spans: Sequence[TaskSpans] | None = None  # of each episode; None where frames have numbers
    partial: bool = False  # whether some of the dataset's episodes, or rows of its files, are left out

    def all_files(self) -> list[str]:
        """Every data file and video, relative to the dataset's folder."""
        return [*self.files, *(file for places in self.videos.values() for file in places.files)]

    @property
    def several_tasks(self) -> bool:
        """Whether some episode's frames have different instructions."""
        return any(len(tasks) > 1 for tasks in self.task_sets)

    def rows_in_file(self, here: np.ndarray) -> np.ndarray | None:
        """The rows int64 [n] of the episodes `here`, which are in one data file; None if these are all its rows."""
        if not self.partial:
            return None
        return np.concatenate([np.arange(self.row[i], self.row[i] + self.length[i]) for i in here])

    def without_place(self) -> dict[int, str]:
        """Episodes for which the metadata does not say where they are in a video, with that video's key."""
        return {int(index): key for key, places in self.videos.items() for index in np.flatnonzero(places.file < 0)}

    def only(self, kept: np.ndarray) -> Episodes:
        """Some of the episodes, int64 [n] in order, with the tasks and files that they use."""
        tasks = np.unique([*self.task[kept].tolist(), *(task for i in kept for task in self.task_sets[i])])
        files, file = np.unique(self.file[kept], return_inverse=True)
        place = {int(task): i for i, task in enumerate(tasks)}
        videos = {}
        for key, places in self.videos.items():
            videos[key] = _used_places(places, kept)
        return Episodes(
            tasks=[self.tasks[i] for i in tasks],
            task=np.array([place[int(i)] for i in self.task[kept]], np.int64),
            task_sets=[tuple(place[task] for task in self.task_sets[i]) for i in kept],
            untold=self.untold[kept],
            task_key=self.task_key,
            task_spans=None if self.task_spans is None else [self._span(i, place) for i in kept.tolist()],
            source_task={number: place[i] for number, i in self.source_task.items() if i in place},
            number=self.number[kept],
            length=self.length[kept],
            files=[self.files[i] for i in files],
            file=file,
            file_rows=self.file_rows[files],
            row=self.row[kept],
            videos=videos,
            partial=True,
        )

    def _span(self, index: int, place: Mapping[int, int]) -> TaskSpans:
        assert self.task_spans is not None
        times, tasks = self.task_spans[index]
        return times, np.array([place[int(task)] for task in tasks], np.int64)


def _used_places(places: VideoPlaces, kept: np.ndarray) -> VideoPlaces:
    used, which = np.unique(places.file[kept], return_inverse=True)
    unknown = int(len(used) > 0 and used[0] < 0)  # -1 comes first, and stays -1
    return VideoPlaces([places.files[i] for i in used[unknown:]], which.reshape(-1) - unknown, places.start[kept])


def read_episodes(
    root: Path, info: Info, known: KnownTasks, video_keys: Sequence[str], instruction: str | None = None
) -> Episodes:
    """Read the metadata of all episodes, and their places in the videos. known: from `read_tasks`. instruction: of
    episodes that have none. Raises InputError that names file and key."""
    read = _read_version_2 if info.one_file_an_episode else _read_version_3
    episodes = _with_instruction(read(root, info, known, video_keys), root, instruction)
    for what, said, found in (
        ("total_episodes", info.episodes, len(episodes.length)),
        ("total_frames", info.frames, int(episodes.length.sum())),
    ):
        if said != found:
            raise InputError(
                f"{info.path}: {what} is {said}, but the episodes' metadata has {found}; the dataset is incomplete or "
                f"was being written. {mend(root)}"
            )
    return episodes


def _with_instruction(episodes: Episodes, root: Path, instruction: str | None) -> Episodes:
    """Give an instruction to the episodes that have none. Raises InputError where that is missing, or not needed."""
    lacking = [i for i, tasks in enumerate(episodes.task_sets) if any(not episodes.tasks[t].strip() for t in tasks)]
    if instruction is None:
        if lacking and "" not in [episodes.tasks[task] for task in episodes.source_task.values()]:
            raise InputError(
                f"{root}: {len(lacking)} episodes have no instruction, such as episode {episodes.number[lacking[0]]}. "
                "Say what they do: data.instruction='put the cube into the box' (in a mixture, the instruction in "
                "data.datasets)."
            )
        return episodes
    if not lacking:
        raise InputError(f"data.instruction is '{instruction}', but {root} has its own instructions. Leave it out.")
    texts = [instruction if not text.strip() else text for text in episodes.tasks]
    tasks = list(dict.fromkeys(texts))
    now = [tasks.index(text) for text in texts]
    return replace(
        episodes,
        tasks=tasks,
        task=np.array([now[task] for task in episodes.task], np.int64),
        task_sets=[tuple(dict.fromkeys(now[task] for task in each)) for each in episodes.task_sets],
        source_task={number: now[task] for number, task in episodes.source_task.items()},
    )


def missing_files(root: Path, files: Sequence[str]) -> list[str]:
    """Return those of `files` that are not in the folder, found by listing it: datasets may have 100,000s of files."""
    there: dict[str, set[str]] = {}
    missing = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder not in there:
            there[folder] = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        if name not in there[folder]:
            missing.append(file)
    return missing


def _read_version_3(root: Path, info: Info, known: KnownTasks, video_keys: Sequence[str]) -> Episodes:
    """Several episodes per file; the metadata is in Parquet files."""
    meta = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not meta:
        raise InputError(
            f"{root}/meta/episodes holds no Parquet file, which would say where the episodes are. {mend(root)}"
        )
    places = {key: [f"videos/{key}/{part}" for part in ("chunk_index", "file_index")] for key in video_keys}
    starts = {key: f"videos/{key}/from_timestamp" for key in video_keys}
    integers = ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index"]
    integers += ["dataset_to_index", *(name for names in places.values() for name in names)]
    nulls = {name: -1.0 for names in places.values() for name in names} | dict.fromkeys(starts.values(), np.nan)
    rows = _Rows(meta, parquet_table, integers, list(starts.values()), nulls)
    first, length = rows.numbers["dataset_from_index"], rows.numbers["length"]
    wrong = np.flatnonzero(rows.numbers["dataset_to_index"] - first != length)
    if len(wrong):
        raise InputError(
            f"{root}/meta/episodes: episode {rows.numbers['episode_index'][wrong[0]]} has length {length[wrong[0]]}, "
            f"but its rows are {first[wrong[0]]} to {rows.numbers['dataset_to_index'][wrong[0]]}."
        )
    files, file = _numbered(rows.numbers["data/chunk_index"], rows.numbers["data/file_index"], info.data_file)
    first_of_file = np.full(len(files), np.iinfo(np.int64).max)
    np.minimum.at(first_of_file, file, first)
    return Episodes(
        **_tasks(known, rows.tasks),
        number=rows.numbers["episode_index"],
        length=length,
        files=files,
        file=file,
        file_rows=np.bincount(file, length, len(files)).astype(np.int64),
        row=first - first_of_file[file],
        videos={
            key: _places(
                rows.numbers[chunk],
                rows.numbers[index],
                rows.numbers[starts[key]],
                functools.partial(info.video_file, key),
            )
            for key, (chunk, index) in places.items()
        },
    )


def _places(chunk: np.ndarray, index: np.ndarray, start: np.ndarray, name: Callable[..., str]) -> VideoPlaces:
    """Return where the episodes are in a camera's videos, which for some may be unknown."""
    said = (chunk >= 0) & (index >= 0) & np.isfinite(start)
    file = np.full(len(chunk), -1, np.int64)
    files: list[str] = []
    if said.any():
        files, file[said] = _numbered(chunk[said], index[said], name)
    return VideoPlaces(files, file, np.where(said, start, np.nan))


def _numbered(chunk: np.ndarray, index: np.ndarray, name: Callable[..., str]) -> tuple[list[str], np.ndarray]:
    """The distinct files among [episodes] pairs of numbers, and which of them each episode is in."""
    pairs, which = np.unique(np.stack([chunk, index]), axis=1, return_inverse=True)
    return [name(chunk_index=int(c), file_index=int(f)) for c, f in pairs.T], which.reshape(-1)


def _read_version_2(root: Path, info: Info, known: KnownTasks, video_keys: Sequence[str]) -> Episodes:
    """One file per episode, with times from 0; the metadata is in JSON lines."""
    rows = _Rows([root / "meta" / "episodes.jsonl"], json_lines, ["episode_index", "length"], [], {})
    numbers = rows.numbers["episode_index"].tolist()
    each, zeros = np.arange(len(numbers)), np.zeros(len(numbers), np.int64)

    def files(name: Callable[..., str]) -> list[str]:
        return [name(episode_chunk=number // info.chunk, episode_index=number) for number in numbers]

    return Episodes(
        **_tasks(known, rows.tasks),
        number=rows.numbers["episode_index"],
        length=rows.numbers["length"],
        files=files(info.data_file),
        file=each,
        file_rows=rows.numbers["length"],
        row=zeros,
        videos={
            key: VideoPlaces(files(functools.partial(info.video_file, key)), each, zeros.astype(np.float64))
            for key in video_keys
        },
    )


_Read = Callable[[Path, Sequence[str]], pa.Table]


class _Rows:
    """The metadata about the episodes, by number. Raises InputError that names file and column."""

    def __init__(
        self,
        paths: Sequence[Path],
        read: _Read,
        integers: Sequence[str],
        floats: Sequence[str],
        nulls: Mapping[str, float],
    ) -> None:
        """nulls: what replaces missing numbers in the columns that may have some."""
        tables = [read(path, [*integers, *floats, "tasks"]) for path in paths]
        each = list(zip(tables, paths, strict=True))
        numbers = {
            key: np.concatenate([numbers_of(table, key, dtype, path, nulls.get(key)) for table, path in each])
            for keys, dtype in ((integers, np.int64), (floats, np.float64))
            for key in keys
        }
        order = np.argsort(numbers["episode_index"], kind="stable")
        self.numbers = {key: values[order] for key, values in numbers.items()}
        tasks = [texts for table, path in each for texts in _task_lists(table, path)]
        self.tasks = [tasks[i] for i in order]
        index, length = self.numbers["episode_index"], self.numbers["length"]
        if not len(index) or index[0] < 0 or (np.diff(index) == 0).any() or length.min() < 1:
            raise InputError(f"{paths[0].parent}: episodes must have distinct numbers and a length above 0.")
        if length.max() > _MOST_FRAMES:
            raise InputError(f"{paths[0].parent}: an episode cannot have {length.max()} frames. {mend(paths[0])}")
        negative = [key for key in integers if key not in nulls and self.numbers[key].min() < 0]
        if negative:
            raise InputError(f"{paths[0].parent}: '{negative[0]}' holds negative numbers.")


def read_tasks(root: Path, info: Info) -> KnownTasks:
    """The instructions that a dataset numbers; some may belong to no episode. Raises InputError."""
    return numbered_texts(root, info, "tasks", TASK_KEY)


def numbered_texts(root: Path, info: Info, name: str, key: str) -> KnownTasks:
    """A table of texts in meta, and {number: text}."""
    if info.one_file_an_episode:
        path = root / "meta" / f"{name}.jsonl"
        table = json_lines(path, [key], texts=True)
    else:
        path = root / "meta" / f"{name}.parquet"
        table = parquet_table(path, [key], texts=True)
    columns = [name for name in table.column_names if is_text(table.column(name).type)]
    if not columns:
        raise InputError(f"{path} has no text column, which would hold the tasks.")
    # The index of a table of pandas: older writers leave it unnamed.
    column = next((own for own in (name.removesuffix("s"), _UNNAMED_INDEX) if own in columns), columns[0])
    numbers = numbers_of(table, key, np.int64, path).tolist()
    texts = texts_of(table, column, path)
    known = {number: text for number, text in zip(numbers, texts, strict=True) if text is not None}
    return path, dict(sorted(known.items()))


def _tasks(numbered: KnownTasks, texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The fields of `Episodes` about tasks. texts: the instructions of each episode; none of an episode is ""."""
    path, known = numbered
    used = {text for each in texts for text in each}
    tasks = list(dict.fromkeys(text for text in known.values() if text in used))
    if unknown := sorted(used - set(tasks) - {""}):
        raise InputError(f"{path} lacks the task '{unknown[0]}', which an episode has.")
    tasks += [""] if "" in used and "" not in tasks else []
    place = {text: i for i, text in enumerate(tasks)}
    source = {number: place[text] for number, text in known.items() if text in place}
    sets = [tuple(place[text] for text in each) for each in texts]
    first = np.array([each[0] for each in sets], np.int64)
    untold = np.array([list(each) == [""] for each in texts])
    return {"tasks": tasks, "task": first, "task_sets": sets, "untold": untold, "source_task": source}


def _task_lists(table: pa.Table, path: Path) -> list[list[str]]:
    """The tasks of each episode, from a column of lists."""
    return [_task_list(tasks, path, row) for row, tasks in enumerate(lists_of_texts(table, "tasks", path))]


def _task_list(tasks: Sequence[str], path: Path, row: int) -> list[str]:
    """The episode's instructions, [""] where there are none. The rows, which have the numbers, are checked against
    them when they are read."""
    found = list(dict.fromkeys(tasks))
    if len(found) > 1 and _VALID in found:
        found.remove(_VALID)
    if len(found) > 1 and _INVALID in found:
        raise InputError(
            f"{path}: the episode in row {row} is marked '{_INVALID}': whoever recorded it does not want it used for "
            "training. Remove the episode from the dataset, or the mark."
        )
    return found or [""]
