"""Writes datasets in LeRobot's format 3.0, as LeRobot's own writer does.

First each episode becomes a part (writer_parts.py), in any order and in several processes; then the parts are joined:
data and metadata into Parquet files, videos without encoding them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from atlas.data.episode import EpisodeDataset, frame_tasks, tasks_of
from atlas.data.lerobot.extras import About, EpisodeExtras, write_extras
from atlas.data.lerobot.info import INFO
from atlas.data.lerobot.writing.writer_parts import Part, write_part
from atlas.data.lerobot.writing.writer_tables import Columns, DataWriter, write_episodes, write_tasks
from atlas.data.lerobot.writing.writer_videos import CODECS, check_size, dealt, video_info, whole, write_joined
from atlas.data.proprio import has_libero_proprio
from atlas.errors import InputError
from atlas.system.files import atomic_path
from atlas.system.paths import unfit

__all__ = ["Part", "Plan", "Sizes", "assemble", "check_codec", "plan", "write_part"]

PNG = "png"
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA_PATH, _VIDEO_PATH = f"data/{_FILE}.parquet", f"videos/{{video_key}}/{_FILE}.mp4"
_MB = 2**20


@dataclass(frozen=True)
class Sizes:
    """The sizes at which a new file or folder is begun; LeRobot's own numbers."""

    files_a_chunk: int = 1000
    data_mb: float = 100
    video_mb: float = 200


@dataclass(frozen=True)
class Plan:
    """The plan of what is written, settled before any image is read."""

    cameras: Mapping[str, tuple[int, int]]  # {name: height and width}
    codec: str  # one of CODECS, or png: images within the Parquet files
    fps: float  # the rate that the copy states
    lengths: np.ndarray  # int64 [episodes]
    tasks: list[str]
    task_of: list[np.ndarray]  # of each episode int64 [T], or [1] where all frames have the same
    proprio_dim: int
    about: About
    sizes: Sizes = Sizes()

    @property
    def is_video(self) -> bool:
        return self.codec in CODECS


def check_codec(codec: str, cameras: Mapping[str, tuple[int, int]]) -> None:
    """Raises InputError if the codec is unknown, or cannot hold the images. cameras: {name: height and width}."""
    if codec != PNG and codec not in CODECS:
        raise InputError(f"--codec is '{codec}', expected {PNG} or one of {', '.join(CODECS)}.")
    for camera, (height, width) in cameras.items():
        if "/" in camera or unfit(camera):
            why = unfit(camera) or "it holds a '/'"
            raise InputError(f"The camera {camera!r} cannot have this name in a LeRobot dataset: {why}.")
        check_size(codec, camera, height, width)


def plan(dataset: EpisodeDataset, codec: str, fps: float | None, sizes: Sizes | None = None) -> Plan:
    """Settle how a dataset is written. codec: `png` or one of CODECS; fps: None for the dataset's own.

    Raises InputError if the codec is unknown, or cannot hold the images.
    """
    cameras = {camera: dataset.image_size(camera) for camera in dataset.cameras}
    check_codec(codec, cameras)
    # Numbered as in LeRobot: by their first episode.
    order = list(dict.fromkeys(task for i in range(len(dataset)) for task in tasks_of(dataset, i)))
    place = {task: number for number, task in enumerate(order)}
    frames = [frame_tasks(dataset, i) for i in range(len(dataset))]
    own = [np.array([task]) if each is None else each for task, each in zip(dataset.task_of, frames, strict=True)]
    return Plan(
        cameras=cameras,
        codec=codec,
        fps=fps or dataset.fps,
        lengths=np.asarray(dataset.lengths),
        tasks=[dataset.tasks[task] for task in order],
        task_of=[np.array([place[task] for task in each.tolist()], np.int64) for each in own],
        proprio_dim=dataset.proprio_dim,
        about=About(dataset.environment, dataset.action_spec, has_libero_proprio(dataset)),
        sizes=sizes or Sizes(),
    )


def assemble(root: Path, plan: Plan, parts: Sequence[Part], advance: Callable[[int], object]) -> None:
    """Join the parts of all episodes in a new folder. advance: called for each episode that is done."""
    columns, extras = _common(plan, parts)
    rows = _begin_rows(plan)
    for camera in plan.cameras if plan.is_video else ():
        _write_videos(root, plan, camera, parts, rows)
    with DataWriter(root / "data", columns, plan.sizes.data_mb * _MB, plan.sizes.files_a_chunk) as data:
        for number, part in enumerate(parts):
            images = None if plan.is_video else part.images()
            rows[number] |= data.write(number, plan.task_of[number], part.numbers(), images)
            advance(1)
    write_episodes(root / "meta" / "episodes", rows, plan.sizes.data_mb * _MB, plan.sizes.files_a_chunk)
    write_tasks(root / "meta" / "tasks.parquet", plan.tasks)
    _write_json(root / "meta" / "stats.json", data.statistics())
    write_extras(root, plan.about, extras)
    _write_json(root / INFO, _info(plan, columns))


def _common(plan: Plan, parts: Sequence[Part]) -> tuple[Columns, list[EpisodeExtras]]:
    """The columns, which are what all episodes have, and what is kept of each."""
    rewards = success = True
    extras = []
    for part in parts:
        numbers = part.numbers()
        rewards, success = rewards and numbers.rewards is not None, success and numbers.success is not None
        width = None if numbers.sim_states is None else numbers.sim_states.shape[1]
        extras.append(EpisodeExtras(width, numbers.init_state, numbers.model_xml))
    widths = [extra.sim_dim for extra in extras if extra.sim_dim is not None]
    if len(widths) < len(parts):
        widths, extras = [], [replace(extra, sim_dim=None) for extra in extras]
    columns = Columns(
        cameras={camera: f"observation.images.{camera}" for camera in plan.cameras},
        images_within=not plan.is_video,
        fps=plan.fps,
        proprio_dim=plan.proprio_dim,
        action_dim=plan.about.spec.dim,
        rewards=rewards,
        success=success,
        sim_dim=max(widths, default=None),
    )
    return columns, extras


def _begin_rows(plan: Plan) -> list[dict[str, Any]]:
    """The first columns of the episodes' table."""
    return [
        {"episode_index": number, "tasks": [plan.tasks[t] for t in dict.fromkeys(tasks.tolist())], "length": length}
        for number, (tasks, length) in enumerate(zip(plan.task_of, plan.lengths.tolist(), strict=True))
    ]


def _write_videos(root: Path, plan: Plan, camera: str, parts: Sequence[Part], rows: list[dict[str, Any]]) -> None:
    """Write a camera's videos, and note in the rows where each episode is."""
    key = f"observation.images.{camera}"
    videos, lengths = [part.video(camera) for part in parts], plan.lengths.tolist()
    for file, numbers in enumerate(dealt(videos, plan.sizes.video_mb * _MB)):
        chunk, index = divmod(file, plan.sizes.files_a_chunk)
        path = root / _VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=index)
        write_joined(path, [videos[i] for i in numbers], [lengths[i] for i in numbers], plan.fps)
        done = 0
        for i in numbers:
            rows[i] |= {
                f"videos/{key}/chunk_index": chunk,
                f"videos/{key}/file_index": index,
                f"videos/{key}/from_timestamp": done / plan.fps,
                f"videos/{key}/to_timestamp": (done + lengths[i]) / plan.fps,
            }
            done += lengths[i]


def _info(plan: Plan, columns: Columns) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "fps": whole(plan.fps),
        "features": _features(plan, columns),
        "total_episodes": len(plan.lengths),
        "total_frames": int(plan.lengths.sum()),
        "total_tasks": len(plan.tasks),
        "chunks_size": plan.sizes.files_a_chunk,
        "data_files_size_in_mb": plan.sizes.data_mb,
        "video_files_size_in_mb": plan.sizes.video_mb,
        "data_path": _DATA_PATH,
        "video_path": _VIDEO_PATH if plan.is_video else None,
        "robot_type": None,
        "splits": {"train": f"0:{len(plan.lengths)}"},
    }


def _features(plan: Plan, columns: Columns) -> dict[str, dict[str, Any]]:
    """The cameras, followed by the columns of numbers."""
    found: dict[str, dict[str, Any]] = {}
    for camera, (height, width) in plan.cameras.items():
        key = columns.cameras[camera]
        found[key] = {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channel"]}
        if plan.is_video:
            found[key] |= {"dtype": "video", "info": video_info(plan.codec, height, width, plan.fps)}
    for key, (dtype, width) in columns.numbers.items():
        found[key] = {"dtype": dtype, "shape": [width], "names": None}
    found["action"]["names"] = list(plan.about.spec.names)
    return found


def _write_json(path: Path, value: Any) -> None:
    """JSON with LeRobot's indentation, and text unescaped."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False), encoding="utf-8")
