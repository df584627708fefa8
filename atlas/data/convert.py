"""Copies a dataset into another format: in parallel and resumable; the copy appears complete or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from atlas.data.episode import EpisodeDataset, RecordedEpisode, tasks_of
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.data.lerobot.writing.writer import Part, Plan, assemble, check_codec, plan, write_part
from atlas.errors import InputError
from atlas.system.documents import read_json_object
from atlas.system.files import sync_tree, write_json
from atlas.system.locks import hold
from atlas.system.paths import file_name
from atlas.system.process_control.pool import run_jobs
from atlas.system.progress import progress_bar
from atlas.types import ActionSpec

Format = Literal["lerobot", "libero-hdf5"]
FORMATS: tuple[Format, ...] = ("lerobot", "libero-hdf5")
DEFAULT_CODEC = "av1"
_NOTE = "conversion.json"  # what was asked for; in the copy, and beside the work in progress
_FORMAT = 1  # raised when the files change, so that older unfinished work is not continued
_LIBERO_PROPRIO = 8


@dataclass(frozen=True)
class Conversion:
    """The settings of a copy."""

    to: Format
    codec: str | None = None  # for a LeRobot dataset's images; None: av1
    fps: float | None = None  # the rate that a LeRobot dataset states; None: the source's. No frame is left out


def convert(dataset: EpisodeDataset, out: Path, asked: Conversion, workers: int | None = None) -> bool:
    """Write all episodes of a dataset into the new folder `out`; False if they are there already.

    The work is done in a hidden folder beside `out`, which is renamed to `out` when all is written; unfinished work of
    the same conversion found there is continued. workers: processes; None means one per core.

    Raises InputError if `out` holds something else, the format cannot hold the source, or the source is damaged.
    """
    settled = _settle(dataset, asked)
    note = {"format": _FORMAT, "source": str(dataset.path), "fingerprint": dataset.fingerprint(), **asdict(asked)}
    if _is_done(out, note):
        return False
    work = out.with_name(f".{out.name}.converting")
    with hold(work, f"the copy {out}"):
        if _is_done(out, note):
            shutil.rmtree(work)
            return False
        _convert(dataset, out, work, note, settled, workers)
    return True


def _convert(
    dataset: EpisodeDataset,
    out: Path,
    work: Path,
    note: dict[str, Any],
    settled: Plan | list[tuple[int, str]],
    workers: int | None,
) -> None:
    parts, result = work / "parts", work / "result"
    if read_json_object(work / _NOTE) != note:
        for folder in (parts, result):
            shutil.rmtree(folder, ignore_errors=True)
    write_json(work / _NOTE, note)
    if isinstance(settled, Plan):
        _to_lerobot(dataset, settled, parts, result, workers)
    else:
        _to_libero(dataset, settled, result, workers)
    write_json(result / _NOTE, note)
    sync_tree(result)
    result.rename(out)  # also replaces an empty folder
    shutil.rmtree(work)


def check_form(asked: Conversion, cameras: Mapping[str, tuple[int, int]]) -> None:
    """Raises InputError if a format cannot hold images of these sizes, or the requested settings contradict.

    cameras: {name: height and width}.
    """
    if asked.to == "lerobot":
        check_codec(asked.codec or DEFAULT_CODEC, cameras)
        return
    for flag, value in (("--codec", asked.codec), ("--fps", asked.fps)):
        if value is not None:
            raise InputError(f"{flag} is for --to lerobot; LIBERO's files hold images as they are, at 20 Hz.")


def check_target(out: Path) -> None:
    """Raises InputError if `out` holds anything that no conversion has left."""
    if out.exists() and read_json_object(out / _NOTE) is None and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name another folder for the copy.")


def _settle(dataset: EpisodeDataset, asked: Conversion) -> Plan | list[tuple[int, str]]:
    """Settle how it will be written: a LeRobot dataset's plan, or LIBERO's tasks and file names."""
    check_form(asked, {camera: dataset.image_size(camera) for camera in dataset.cameras})
    if asked.to == "lerobot":
        return plan(dataset, asked.codec or DEFAULT_CODEC, asked.fps)
    if dataset.action_spec != ActionSpec() or dataset.proprio_dim != _LIBERO_PROPRIO:
        raise InputError(
            f"LIBERO's files hold LIBERO's seven action numbers at 20 Hz and {_LIBERO_PROPRIO} proprio numbers, but "
            f"{dataset.path} has {', '.join(dataset.action_spec.names)} at {dataset.action_spec.control_hz:g} Hz and "
            f"{dataset.proprio_dim} proprio numbers. Use --to lerobot."
        )
    changing = next((i for i in range(len(dataset)) if len(tasks_of(dataset, i)) > 1), None)
    if changing is not None:
        raise InputError(
            f"LIBERO's files hold one instruction an episode, but that of episode {changing} of {dataset.path} "
            "changes. Use --to lerobot."
        )
    names: dict[str, int] = {}
    for task in dict.fromkeys(dataset.task_of.tolist()):
        stem = file_name(dataset.tasks[task]) or "task"
        name = next(n for n in (stem, *(f"{stem}_{i}" for i in range(len(names) + 1))) if n not in names)
        names[name] = task
    return [(task, f"{name}_demo.hdf5") for name, task in names.items()]


def _is_done(out: Path, note: dict[str, Any]) -> bool:
    check_target(out)
    found = read_json_object(out / _NOTE) if out.exists() else None
    if found is None:
        return False
    if found != note:
        differing = ", ".join(
            f"{key}: {found.get(key)} there, {value} asked" for key, value in note.items() if found.get(key) != value
        )
        raise InputError(f"{out} holds another copy ({differing}). Remove it, or name another folder.")
    return True


# ---- LeRobot ---------------------------------------------------------------------------------------------


def _to_lerobot(dataset: EpisodeDataset, plan: Plan, parts: Path, result: Path, workers: int | None) -> None:
    places = [Part(parts / f"episode_{number:06d}") for number in range(len(dataset))]
    missing = [number for number, part in enumerate(places) if not part.complete]
    title = f"converting {dataset.path.name}"
    run_jobs(title, len(places), missing, _write_part, _start, (dataset, plan, parts), workers, may_stay=True)
    shutil.rmtree(result, ignore_errors=True)  # left by a conversion that was stopped while joining the parts
    with progress_bar(f"writing {plan.codec} into one dataset", len(places)) as advance:
        assemble(result, plan, places, advance)


def _write_part(number: int) -> None:
    dataset, plan, parts = _source()
    part = Part(parts / f"episode_{number:06d}")
    write_part(part, dataset.episode(number), list(plan.cameras), plan.codec, plan.fps)


# ---- LIBERO's HDF5 ---------------------------------------------------------------------------------------


def _to_libero(dataset: EpisodeDataset, tasks: list[tuple[int, str]], result: Path, workers: int | None) -> None:
    result.mkdir(exist_ok=True)
    missing = [(task, name) for task, name in tasks if not _is_whole(result / name)]
    title = f"converting {dataset.path.name}"
    run_jobs(title, len(tasks), missing, _write_file, _start, (dataset, None, result), workers, may_stay=True)


def _is_whole(file: Path) -> bool:
    """Whether a file is there with its bytes: a power cut may leave only its name."""
    return file.is_file() and h5py.is_hdf5(file)


def _write_file(job: tuple[int, str]) -> None:
    dataset, _, result = _source()
    task, name = job
    spec = dataset.action_spec
    env_args = {"env_name": dataset.environment or "", "type": 1, "env_kwargs": {"control_freq": spec.control_hz}}
    write_libero_file(result / name, dataset.tasks[task], _episodes(dataset, task), env_args)


def _episodes(dataset: EpisodeDataset, task: int) -> Iterator[RecordedEpisode]:
    for number in np.flatnonzero(dataset.task_of == task).tolist():
        episode = dataset.episode(number)
        rewards = episode.rewards
        if rewards is None and episode.success is not None:  # LIBERO's convention: 1 when the task is done
            rewards = np.zeros(len(episode), np.float32)
            rewards[-1] = episode.success
        yield RecordedEpisode(
            instruction=episode.instruction,
            images={camera: episode.images(camera, range(len(episode))) for camera in dataset.cameras},
            proprio=episode.proprio,
            actions=episode.actions.astype(np.float64),
            rewards=rewards,
            sim_states=episode.sim_states,
            init_state=episode.init_state,
            model_xml=episode.model_xml,
        )


# ---- in the worker processes -----------------------------------------------------------------------------

_job: tuple[EpisodeDataset, Any, Path] | None = None  # what each process works on


def _start(dataset: EpisodeDataset, plan: Plan | None, folder: Path) -> None:
    global _job
    _job = dataset, plan, folder


def _source() -> tuple[EpisodeDataset, Any, Path]:
    assert _job is not None
    return _job
