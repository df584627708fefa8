"""Recording demonstrations of the cubes world with its scripted expert, in parallel and resumable."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from atlas.cores import available_cores
from atlas.data.episode import RecordedEpisode
from atlas.data.libero_writer import write_libero_file
from atlas.errors import InputError
from atlas.files import atomic_path, write_json
from atlas.progress import progress_bar
from atlas.rollout.seeds import episode_seed
from atlas.rollout.workers import worker_start
from atlas.rollout.worlds import make_environment

_MAX_TRIES = 20  # starts tried for one episode before the expert is called broken
_FORMAT = 1  # raised when the world, the expert or the files change, so that older recordings are not reused


@dataclass(frozen=True)
class RecordSettings:
    """What is recorded; two recordings with equal settings hold the same episodes."""

    env: str = "cubes"
    episodes: int = 200  # in all, balanced over the instructions
    seed: int = 0
    image_size: int = 64


def record(settings: RecordSettings, out: Path, workers: int | None = None) -> None:
    """Record demonstrations into `out`, one LIBERO-layout HDF5 file an instruction.

    Continues an interrupted recording of the same settings; each file is complete or absent. Only successful
    episodes are kept. Raises InputError when `out` holds something else.
    """
    if settings.env != "cubes":
        raise InputError(f"There is a scripted expert for the environment 'cubes' only, not for '{settings.env}'.")
    if not 2 <= settings.episodes < 10**5:
        raise InputError(f"--episodes must be from 2 to 99999 (one an instruction at least), got {settings.episodes}.")
    if is_recorded(settings, out):
        return
    parts = out / ".parts"
    parts.mkdir(parents=True, exist_ok=True)
    write_json(out / "recording.json", _fingerprint(settings))

    from atlas.rollout.cubes import INSTRUCTIONS

    wanted = [(task, i) for i in range(settings.episodes) for task in [i % len(INSTRUCTIONS)]]
    missing = [(task, i) for task, i in wanted if not _part(parts, i).exists()]
    workers = min(workers or available_cores(), max(1, len(missing)))
    with (
        progress_bar(
            f"recording demonstrations into {out}", total=len(wanted), done=len(wanted) - len(missing)
        ) as advance,
        worker_start(),
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (settings,)) as pool,
    ):
        jobs = [pool.submit(_record_part, parts, INSTRUCTIONS[task], i) for task, i in missing]
        try:
            for job in as_completed(jobs):
                job.result()
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

    env_args = {"env_name": settings.env, "type": 1, "env_kwargs": {"control_freq": 20, **asdict(settings)}}
    for task, instruction in enumerate(INSTRUCTIONS):
        numbers = [i for t, i in wanted if t == task]
        file = out / f"{instruction.replace(' ', '_')}_demo.hdf5"
        write_libero_file(file, instruction, _read_parts(parts, numbers), env_args)
    shutil.rmtree(parts)


def is_recorded(settings: RecordSettings, out: Path) -> bool:
    """Whether `out` holds a complete recording of these settings; False where it is absent or unfinished.

    Raises InputError when the folder holds something else.
    """
    marker = out / "recording.json"
    if not marker.exists():
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out} is not empty and holds no recording of Atlas; give another folder.")
        return False
    found, asked = json.loads(marker.read_text()), _fingerprint(settings)
    if found != asked:
        differing = ", ".join(f"{k}: {found.get(k)} there, {v} asked" for k, v in asked.items() if found.get(k) != v)
        raise InputError(f"{out} holds another recording ({differing}). Remove it, or give another folder.")
    return not (out / ".parts").exists() and any(out.glob("*_demo.hdf5"))


def _fingerprint(settings: RecordSettings) -> dict[str, Any]:
    return {"format": _FORMAT, **asdict(settings)}


def record_episode(env: Any, instruction: str, seed: int, number: int) -> RecordedEpisode:
    """One successful demonstration, a pure function of (instruction, seed, number)."""
    from atlas.rollout.expert import CubesExpert, Disturbance

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

_worker: tuple[Any, RecordSettings] | None = None  # each process has one environment


def _start_worker(settings: RecordSettings) -> None:
    global _worker
    _worker = make_environment(settings.env, settings.image_size), settings


def _record_part(parts: Path, instruction: str, number: int) -> None:
    assert _worker is not None
    env, settings = _worker
    episode = record_episode(env, instruction, settings.seed, number)
    values: dict[str, Any] = {f.name: getattr(episode, f.name) for f in fields(episode) if f.name != "images"}
    values |= {f"image/{camera}": images for camera, images in episode.images.items()}
    with atomic_path(_part(parts, number)) as partial, partial.open("wb") as file:
        np.savez(file, **values)


def _part(parts: Path, number: int) -> Path:
    return parts / f"episode_{number:05d}.npz"


def _read_parts(parts: Path, numbers: list[int]) -> Iterator[RecordedEpisode]:
    for number in numbers:
        with np.load(_part(parts, number)) as part:
            values = {k: part[k] for k in part.files if not k.startswith("image/")}
            images = {k.removeprefix("image/"): part[k] for k in part.files if k.startswith("image/")}
        for name in ("instruction", "model_xml"):
            values[name] = str(values[name])
        yield RecordedEpisode(images=images, **values)
