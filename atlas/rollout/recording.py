"""Recording demonstrations of the cubes world with its scripted expert, in parallel and resumable."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from atlas.data.convert import DEFAULT_CODEC, Conversion, Format, check_form, convert
from atlas.data.episode import RecordedEpisode
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.data.hdf5.reader import LiberoDataset
from atlas.environments.catalog import environment_spec, make_environment
from atlas.environments.cubes import INSTRUCTIONS, CubesEnvironment
from atlas.environments.cubes_expert import CubesExpert, Disturbance
from atlas.errors import InputError
from atlas.rollout.episode_plan import episode_seed
from atlas.system.documents import read_json
from atlas.system.files import atomic_path, sync, write_json
from atlas.system.locks import LOCK, hold
from atlas.system.process_control.pool import run_jobs

_MAX_TRIES = 20  # starts tried for one episode before the expert is called broken
_FORMAT = 1  # raised when the world, the expert or the files change, so that older recordings are not reused


_MARKER, _PARTS = "recording.json", ".parts"
_AS_LIBERO = Conversion("libero-hdf5")


@dataclass(frozen=True)
class RecordSettings:
    """What is recorded; two recordings with equal settings hold the same episodes."""

    env: str = "cubes"
    episodes: int = 200  # in all, balanced over the instructions
    seed: int = 0
    image_size: int = 64


def record(
    settings: RecordSettings,
    out: Path,
    workers: int | None = None,
    to: Format = "libero-hdf5",
    codec: str | None = None,
    *,
    wait: bool = False,
) -> None:
    """Record demonstrations into `out`: LIBERO-layout HDF5 files, one an instruction, or a LeRobot dataset.

    Continues an interrupted recording of the same settings; each file is complete or absent. Only successful
    episodes are kept. codec: of a LeRobot dataset's images. wait: where another process records into `out`, until it
    has done, instead of refusing. Raises InputError when `out` holds something else.
    """
    if settings.env != "cubes":
        raise InputError(f"There is a scripted expert for the environment 'cubes' only, not for '{settings.env}'.")
    if not 2 <= settings.episodes < 10**5:
        raise InputError(f"--episodes must be from 2 to 99999 (one an instruction at least), got {settings.episodes}.")
    form = Conversion(to, codec)
    size = settings.image_size
    check_form(form, {camera: (size, size) for camera in environment_spec(settings.env, size).cameras})
    if is_recorded(settings, out, form):
        return
    with hold(out, "this recording", wait=wait):
        if not is_recorded(settings, out, form):  # by the process that was waited for
            _record(settings, out, workers, form)


def _record(settings: RecordSettings, out: Path, workers: int | None, form: Conversion) -> None:
    parts = out / _PARTS
    if _read_marker(out) is None:  # parts and files without one may be of any settings
        shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True, exist_ok=True)
    write_json(out / _MARKER, _fingerprint(settings, form))

    wanted = [(INSTRUCTIONS[i % len(INSTRUCTIONS)], i) for i in range(settings.episodes)]
    missing = [job for job in wanted if not _is_whole(_part(parts, job[1]))]
    title = f"recording demonstrations into {out}"
    run_jobs(title, len(wanted), missing, _record_part, _start_worker, (settings, parts), workers)
    if form.to == "lerobot":
        _write_files(settings, wanted, parts, parts / "demonstrations")
        _move_as_lerobot(parts / "demonstrations", out, form, workers)
    else:
        _write_files(settings, wanted, parts, out)
        for place in (*out.glob("*_demo.hdf5"), out):  # before what they are made from goes
            sync(place)
    shutil.rmtree(parts)


def _write_files(settings: RecordSettings, wanted: list[tuple[str, int]], parts: Path, folder: Path) -> None:
    """Put the parts together in LIBERO's layout, a file an instruction."""
    env_args = {"env_name": settings.env, "type": 1, "env_kwargs": {"control_freq": 20, **asdict(settings)}}
    for instruction in dict(wanted):
        file = folder / f"{instruction.replace(' ', '_')}_demo.hdf5"
        numbers = [number for task, number in wanted if task == instruction]
        write_libero_file(file, instruction, _read_parts(parts, numbers), env_args)


def _move_as_lerobot(files: Path, out: Path, form: Conversion, workers: int | None) -> None:
    """Convert LIBERO's files, beside them, and move the copy's folders into `out`."""
    copy = files.with_name("lerobot")
    convert(LiberoDataset(files), copy, form, workers)
    for folder in sorted(copy.iterdir(), key=lambda path: path.name == "meta"):  # what says that all is there, last
        if folder.is_dir():
            shutil.rmtree(out / folder.name, ignore_errors=True)  # of a recording that was stopped just here
            folder.rename(out / folder.name)


def is_recorded(settings: RecordSettings, out: Path, form: Conversion = _AS_LIBERO) -> bool:
    """Whether `out` holds a complete recording of these settings; False where it is absent or unfinished.

    Raises InputError when the folder holds something else.
    """
    found, asked = _read_marker(out), _fingerprint(settings, form)
    if found is None:
        others = {path.name for path in out.iterdir()} - {LOCK, _PARTS} if out.exists() else set()
        if others and _MARKER not in others:
            raise InputError(f"{out} is not empty and holds no recording of Atlas; give another folder.")
        return False
    if found != asked:
        differing = ", ".join(
            f"{key}: {found.get(key)} there, {asked.get(key)} asked"
            for key in {**asked, **found}
            if found.get(key) != asked.get(key)
        )
        raise InputError(f"{out} holds another recording ({differing}). Remove it, or give another folder.")
    whole = (out / "meta").is_dir() if form.to == "lerobot" else any(out.glob("*_demo.hdf5"))
    return whole and not (out / _PARTS).exists()


def _read_marker(out: Path) -> dict[str, Any] | None:
    """What a folder says it holds; None where it says nothing, or a power cut has left the name of the file alone."""
    try:
        found = read_json(out / _MARKER)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _fingerprint(settings: RecordSettings, form: Conversion) -> dict[str, Any]:
    as_lerobot = {"to": form.to, "codec": form.codec or DEFAULT_CODEC} if form.to == "lerobot" else {}
    return {"format": _FORMAT, **asdict(settings), **as_lerobot}


def record_episode(env: CubesEnvironment, instruction: str, seed: int, number: int) -> RecordedEpisode:
    """One successful demonstration, a pure function of (instruction, seed, number)."""
    for attempt in range(_MAX_TRIES):
        start = episode_seed("record", seed, number * _MAX_TRIES + attempt)
        observation = env.reset(seed=start, instruction=instruction)
        expert, disturb = CubesExpert(env), Disturbance(np.random.default_rng([start, 1]))
        columns: dict[str, list[Any]] = {k: [] for k in ("images", "proprio", "joints", "actions", "rewards", "states")}
        while True:
            action = disturb(expert.act(), expert.phase)
            columns["images"].append(observation.images)
            columns["proprio"].append(observation.proprio)
            columns["joints"].append(env.joint_positions())
            columns["states"].append(env.get_state())
            result = env.step(action)
            columns["actions"].append(action)
            columns["rewards"].append(result.reward)
            if result.done:
                break
            assert result.observation is not None
            observation = result.observation
        if result.success:
            return RecordedEpisode(
                instruction=instruction,
                images={c: np.stack([i[c] for i in columns["images"]]) for c in env.spec.cameras},
                proprio=np.stack(columns["proprio"]),
                joints=np.stack(columns["joints"]),
                actions=np.stack(columns["actions"]),
                rewards=np.array(columns["rewards"], np.float32),
                sim_states=np.stack(columns["states"]),
                model_xml=env.model_xml,
            )
    raise RuntimeError(f"the expert failed {_MAX_TRIES} times in a row at episode {number}: '{instruction}'")


# ---- in the worker processes -----------------------------------------------------------------------------

_worker: tuple[Any, RecordSettings, Path] | None = None  # each process has one environment


def _start_worker(settings: RecordSettings, parts: Path) -> None:
    global _worker
    _worker = make_environment(settings.env, settings.image_size), settings, parts


def _record_part(job: tuple[str, int]) -> None:
    assert _worker is not None
    env, settings, parts = _worker
    instruction, number = job
    episode = record_episode(env, instruction, settings.seed, number)
    values: dict[str, Any] = {f.name: getattr(episode, f.name) for f in fields(episode) if f.name != "images"}
    values |= {f"image/{camera}": images for camera, images in episode.images.items()}
    with atomic_path(_part(parts, number)) as partial, partial.open("wb") as file:
        np.savez(file, **{name: value for name, value in values.items() if value is not None})


def _part(parts: Path, number: int) -> Path:
    return parts / f"episode_{number:05d}.npz"


def _is_whole(part: Path) -> bool:
    """Whether an episode is there, with the bytes that it was written with."""
    try:
        with zipfile.ZipFile(part) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def _read_parts(parts: Path, numbers: list[int]) -> Iterator[RecordedEpisode]:
    for number in numbers:
        with np.load(_part(parts, number)) as part:
            values = {k: part[k] for k in part.files if not k.startswith("image/")}
            images = {k.removeprefix("image/"): part[k] for k in part.files if k.startswith("image/")}
        for name in ("instruction", "model_xml"):
            values[name] = str(values[name])
        yield RecordedEpisode(images=images, **values)
