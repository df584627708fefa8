"""Sub-tasks as the instructions of frames, in the two ways in which LeRobot stores them.

Its versions 0.4.4 and 0.5 number them in each frame's `subtask_index`; meta/subtasks.parquet is a table of pandas whose
index holds their texts. Later ones have a column `language_persistent`: each of an episode's frames has all that was
said of the episode, among it rows of the style `subtask` with the time from which each holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from atlas.data.lerobot.episodes import Episodes, TaskSpans, numbered_texts
from atlas.data.lerobot.info import Info
from atlas.data.lerobot.tables import is_list, open_parquet, readable_parquet
from atlas.errors import InputError

_NUMBER, _SAID, _STYLE = "subtask_index", "language_persistent", "subtask"
_ROWS = 1024  # that are read at a time


def with_subtasks(episodes: Episodes, root: Path, info: Info) -> Episodes:
    """Take the frames' sub-tasks as their instructions; a frame that has none has its episode's task. Raises InputError
    where the dataset has none."""
    if _NUMBER in info.features:
        return _numbered(episodes, root, info)
    if _SAID in info.features:
        return _timed(episodes, root)
    raise InputError(
        f"data.features.instruction is subtask, but {info.path} has no feature '{_NUMBER}', by which LeRobot numbers "
        f"the frames' sub-tasks, nor '{_SAID}', in which its later versions keep them; leave it out."
    )


def _numbered(episodes: Episodes, root: Path, info: Info) -> Episodes:
    """A frame's number is -1 where it has no sub-task."""
    known = numbered_texts(root, info, "subtasks", _NUMBER)[1]
    tasks = list(dict.fromkeys([*episodes.tasks, *known.values()]))
    every = tuple(dict.fromkeys(tasks.index(text) for text in known.values()))
    return replace(
        episodes,
        tasks=tasks,
        task_sets=[(int(task), *(each for each in every if each != task)) for task in episodes.task],
        source_task={number: tasks.index(text) for number, text in known.items()},
        task_key=_NUMBER,
    )


def _timed(episodes: Episodes, root: Path) -> Episodes:
    said: list[list[tuple[float, str]]] = [[] for _ in episodes.length]
    for number, name in enumerate(episodes.files):
        here = np.flatnonzero(episodes.file == number)
        rows = dict(zip(episodes.row[here].tolist(), here.tolist(), strict=True))
        for row, value in _first_rows(root / name, sorted(rows)):
            said[rows[row]] = _subtasks(value, root / name)
    if not any(said):
        raise InputError(
            f"data.features.instruction is subtask, but in {root} no row of '{_SAID}' has the style '{_STYLE}'; leave "
            "it out."
        )
    tasks = list(dict.fromkeys([*episodes.tasks, *(text for each in said for _, text in each)]))
    spans: list[TaskSpans] = [
        (np.array([time for time, _ in each]), np.array([tasks.index(text) for _, text in each], np.int64))
        for each in said
    ]
    sets = [
        tuple(dict.fromkeys([int(own), *later.tolist()])) for own, (_, later) in zip(episodes.task, spans, strict=True)
    ]
    return replace(episodes, tasks=tasks, task_sets=sets, task_spans=spans)


def _first_rows(path: Path, wanted: list[int]) -> Iterator[tuple[int, Any]]:
    """(row, what is said there) of some rows of a data file, in order. Raises InputError."""
    with readable_parquet(path):
        file = open_parquet(path)
        if _SAID not in file.schema_arrow.names:
            raise InputError(f"{path} lacks the column '{_SAID}', which meta/info.json has.")
        kind = file.schema_arrow.field(_SAID).type
        if not is_list(kind) or not pa.types.is_struct(kind.value_type):
            raise InputError(f"{path}: '{_SAID}' is of type {kind}, expected lists of role, content, style, timestamp.")
        begin, left = 0, list(wanted)
        for batch in file.iter_batches(batch_size=_ROWS, columns=[_SAID]):
            while left and left[0] < begin + batch.num_rows:
                row = left.pop(0)
                yield row, batch.column(0)[row - begin].as_py()
            begin += batch.num_rows


def _subtasks(said: Any, path: Path) -> list[tuple[float, str]]:
    """(the seconds from which it holds, its text) of an episode's sub-tasks, in order."""
    found = []
    for row in said or ():
        if row.get("style") == _STYLE and row.get("content"):
            time = row.get("timestamp")
            if not isinstance(time, float) or not np.isfinite(time):
                raise InputError(f"{path}: the sub-task '{row['content']:.80}' of '{_SAID}' has no timestamp.")
            found.append((time, str(row["content"])))
    return sorted(found, key=lambda each: each[0])
