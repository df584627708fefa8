"""The Parquet files of a LeRobot dataset: frames, episodes and tasks, with the types that LeRobot gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atlas.data.lerobot.extras import SIM_STATE
from atlas.data.lerobot.writing import writer_statistics as statistics
from atlas.data.lerobot.writing.writer_parts import IMAGE, Numbers
from atlas.system.files import atomic_path

_EPISODES_AT_ONCE = 1000  # per row group of the episodes' table
_IMAGE_PAGE = 64 * 2**10  # bytes; small, so that single images can be read without their neighbours
_TYPES = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}


@dataclass(frozen=True)
class Columns:
    """The columns of the data files."""

    cameras: Mapping[str, str]  # {name: key}
    images_within: bool  # true: PNG files in the data files; false: videos
    fps: float
    proprio_dim: int
    action_dim: int
    rewards: bool
    success: bool
    sim_dim: int | None  # of the widest state; None: states are not stored

    @cached_property
    def numbers(self) -> dict[str, tuple[str, int]]:
        """{key: dtype and width}, in order."""
        found = {"observation.state": ("float32", self.proprio_dim), "action": ("float32", self.action_dim)}
        if self.rewards:
            found["next.reward"] = ("float32", 1)
        found["next.done"] = ("bool", 1)
        if self.success:
            found["next.success"] = ("bool", 1)
        if self.sim_dim is not None:
            found[SIM_STATE] = ("float64", self.sim_dim)
        found["timestamp"] = ("float32", 1)
        return found | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), ("int64", 1))

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema, including the features as the `datasets` library stores them in a file."""
        fields = [(key, IMAGE) for key in self.cameras.values()] if self.images_within else []
        known: dict[str, Any] = {key: {"_type": "Image"} for key, _ in fields}
        for key, (dtype, width) in self.numbers.items():
            fields.append((key, _TYPES[dtype] if width == 1 else pa.list_(_TYPES[dtype], width)))
            value = {"dtype": dtype, "_type": "Value"}
            known[key] = value if width == 1 else {"feature": value, "length": width, "_type": "List"}
        return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": known}})})

    def values(self, number: int, task: np.ndarray, first: int, episode: Numbers) -> dict[str, np.ndarray]:
        """The numbers of an episode, [T] or [T, width]. task: of each frame, or one for all. first:
        its first frame's number in the dataset."""
        length = len(episode.actions)
        frames = np.arange(length)
        last = frames == length - 1
        states = np.zeros((length, self.sim_dim or 0))
        if self.sim_dim is not None:
            assert episode.sim_states is not None
            states[:, : episode.sim_states.shape[1]] = episode.sim_states
        found = {
            "observation.state": episode.proprio,
            "action": episode.actions,
            "next.reward": episode.rewards,
            "next.done": last,
            "next.success": last & bool(episode.success),
            SIM_STATE: states,
            "timestamp": frames / self.fps,
            "frame_index": frames,
            "episode_index": np.full(length, number),
            "index": first + frames,
            "task_index": np.broadcast_to(task, (length,)),
        }
        return {key: np.asarray(found[key]).astype(dtype) for key, (dtype, _) in self.numbers.items()}


class DataWriter:
    """Writes episodes one after the other, one row group each, into files up to a size; a context manager."""

    def __init__(self, folder: Path, columns: Columns, most_bytes: float, files_a_chunk: int) -> None:
        images = list(columns.cameras.values()) if columns.images_within else []
        compression = {path: "none" if path.split(".bytes")[0] in images else "snappy" for path in _leaves(columns)}
        options: dict[str, Any] = {"compression": compression}
        if images:
            options |= {"data_page_size": _IMAGE_PAGE, "use_dictionary": [k for k in compression if "bytes" not in k]}
            options |= {"write_statistics": [k for k in compression if "bytes" not in k]}
        self._columns = columns
        self._files = _Files(folder, columns.schema, most_bytes, files_a_chunk, options)
        self._frames = 0
        self._seen: dict[str, list[np.ndarray]] = {key: [] for key in columns.numbers}
        self._levels = {camera: np.zeros((3, 256), np.int64) for camera in columns.cameras}

    def __enter__(self) -> DataWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(self, number: int, task: np.ndarray, episode: Numbers, images: pa.Table | None) -> dict[str, Any]:
        """Write an episode's rows; returns what its row in the episodes' table says about them."""
        columns, length = self._columns, len(episode.actions)
        values = columns.values(number, task, self._frames, episode)
        arrays: dict[str, Any] = {}
        if images is not None:
            arrays |= {key: images.column(camera) for camera, key in columns.cameras.items()}
        for key, value in values.items():
            flat = pa.array(value.reshape(-1))
            arrays[key] = flat if value.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, value.shape[1])
        chunk, file = self._files.write(pa.table(arrays).cast(columns.schema))
        found = {
            columns.cameras[camera]: statistics.of_images(levels, length) for camera, levels in episode.levels.items()
        }
        for key, value in values.items():
            self._seen[key].append(value)
            found[key] = statistics.of_numbers(value.reshape(length, -1))
        for camera, levels in episode.levels.items():
            self._levels[camera] += levels
        self._frames += length
        return {
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._frames - length,
            "dataset_to_index": self._frames,
            **statistics.flattened(found),
        }

    def statistics(self) -> dict[str, Any]:
        """Statistics over all frames: stats.json."""
        keys = self._columns.cameras
        found = {keys[camera]: statistics.of_images(levels, self._frames) for camera, levels in self._levels.items()}
        return found | {
            key: statistics.of_numbers(np.concatenate(values).reshape(self._frames, -1))
            for key, values in self._seen.items()
        }


def write_episodes(folder: Path, rows: Sequence[Mapping[str, Any]], most_bytes: float, files_a_chunk: int) -> None:
    """Write the episodes' table. rows: with equal keys; the place of each row itself is added."""
    order = ["data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
    names = sorted(rows[0], key=lambda name: (name.startswith("stats/"), name.startswith("videos/"), name in order))
    fields = [(name, _episode_type(name, rows[0][name])) for name in names]
    own = [("meta/episodes/chunk_index", pa.int64()), ("meta/episodes/file_index", pa.int64())]
    files = _Files(folder, pa.schema([*fields, *own]), most_bytes, files_a_chunk, {"compression": "snappy"})
    for first in range(0, len(rows), _EPISODES_AT_ONCE):
        here = rows[first : first + _EPISODES_AT_ONCE]
        chunk, file = files.next_place()
        columns = {name: pa.array([row[name] for row in here], kind) for name, kind in fields}
        places = {name: pa.array([n] * len(here)) for (name, _), n in zip(own, (chunk, file), strict=True)}
        files.write(pa.table(columns | places))
    files.close()


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Write the tasks as pandas does with the text as the index, where LeRobot looks up a task's number."""
    texts = {"metadata": None, "field_name": "task", "name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    index = {"metadata": None, "field_name": "task_index", "name": "task_index", "pandas_type": "int64"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [index | {"numpy_type": "int64"}, texts],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], {"pandas": json.dumps(pandas)})
    with atomic_path(path) as partial:
        pq.write_table(pa.table([list(range(len(tasks))), list(tasks)], schema=schema), partial)


class _Files:
    """Distributes tables to files chunk-000/file-000.parquet and so on: a new one when the last one is full."""

    def __init__(
        self, folder: Path, schema: pa.Schema, most_bytes: float, files_a_chunk: int, options: Mapping[str, Any]
    ) -> None:
        self._folder, self._schema, self._options = folder, schema, options
        self._most_bytes, self._files_a_chunk = most_bytes, files_a_chunk
        self._number = -1
        self._sink: Any = None
        self._writer: pq.ParquetWriter | None = None

    def next_place(self) -> tuple[int, int]:
        """Chunk and file of the next table."""
        full = self._sink is None or self._sink.tell() >= self._most_bytes
        return divmod(self._number + full, self._files_a_chunk)

    def write(self, table: pa.Table) -> tuple[int, int]:
        """Write a table as one row group; returns chunk and file."""
        place = self.next_place()
        if self._sink is None or place != divmod(self._number, self._files_a_chunk):
            self.close()
            self._number += 1
            path = self._folder / f"chunk-{place[0]:03d}" / f"file-{place[1]:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pq.ParquetWriter(self._sink, self._schema, **self._options)
        assert self._writer is not None
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        return place

    def close(self) -> None:
        """Finish the last file."""
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer = self._sink = None


def _leaves(columns: Columns) -> Iterator[str]:
    """The columns as Parquet numbers them: a struct's parts and a list's numbers each have a path."""
    for field in columns.schema:
        if pa.types.is_struct(field.type):
            yield from (f"{field.name}.bytes", f"{field.name}.path")
        else:
            yield f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name


def _episode_type(name: str, value: Any) -> pa.DataType:
    if name == "tasks":
        return pa.list_(pa.string())
    if not name.startswith("stats/"):
        return pa.float64() if name.endswith("_timestamp") else pa.int64()
    kind: pa.DataType = pa.int64() if name.endswith("/count") else pa.float64()
    while isinstance(value, list):
        kind, value = pa.list_(kind), value[0]
    return kind
