"""Records demonstrations of a world with its scripted expert, in parallel and resumably."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atlas.data.convert import DEFAULT_CODEC, Conversion, Format, check_form, convert
from atlas.data.episode import EpisodeDataset, RecordedEpisode
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.data.hdf5.reader import LiberoDataset
from atlas.data.recorded_parts import PARTS, RecordedParts, is_whole, part, read_parts, write_part
from atlas.environments.catalog import environment_spec, find_demonstrator, make_environment
from atlas.environments.environment import DescribesRobot, Environment, EnvironmentSpec, Simulator
from atlas.environments.perturbations.choices import PerturbationChoice
from atlas.environments.perturbations.randomization import choose_randomization, draw_scene
from atlas.environments.rendering import RenderingGPU, render_on, software_renderer, tell_of_software
from atlas.environments.scene_variation import VariableScene
from atlas.errors import InputError
from atlas.rollout.episode_plan import episode_seed
from atlas.system.documents import read_json_object
from atlas.system.files import sync, write_json
from atlas.system.locks import LOCK, hold
from atlas.system.process_control.pool import run_jobs
from atlas.types import ActionSpec

_MAX_TRIES = 20  # starts tried for one episode before the expert counts as broken
_FORMAT = 1  # raised when the world, the expert or the files change, so that older recordings are not reused


_LIBERO_PROPRIO = 8
_MARKER = "recording.json"
_AS_LIBERO = Conversion("libero-hdf5")


@dataclass(frozen=True)
class RecordSettings:
    """The settings of a recording; recordings with equal settings hold the same episodes."""

    env: str = "cubes"
    episodes: int = 200  # in all, balanced over the instructions
    seed: int = 0
    image_size: int = 64
    randomize: tuple[str, ...] = ()  # perturbations of the scene, see `choose_randomization`

    def facts(self) -> dict[str, Any]:
        """The settings that a recording stores; `randomize` only where scenes are randomized."""
        values = asdict(self) | {"randomize": list(self.randomize)}
        return values if self.randomize else {key: value for key, value in values.items() if key != "randomize"}


def record(
    settings: RecordSettings,
    out: Path,
    workers: int | None = None,
    to: Format | None = None,
    codec: str | None = None,
    *,
    wait: bool = False,
) -> None:
    """Record demonstrations into `out`: HDF5 files in LIBERO's layout, one per instruction, or a LeRobot dataset.

    to: None means LIBERO's layout where the world has LIBERO's actions and proprio, and LeRobot's otherwise.

    Continues an interrupted recording of the same settings; each file is complete or absent. Only successful episodes
    are kept. codec: for a LeRobot dataset's images. wait: whether to wait for another process that records into `out`,
    instead of refusing. Raises InputError where `out` holds something else.
    """
    find_demonstrator(settings.env)
    spec = environment_spec(settings.env, settings.image_size)
    choose_randomization(settings.randomize, spec)
    least = max(2, len(spec.instructions))
    if not least <= settings.episodes < 10**5:
        raise InputError(
            f"--episodes must be from {least} to 99999 (at least one per instruction), got {settings.episodes}."
        )
    if to == "libero-hdf5" and not is_liberos(spec):
        raise InputError(
            f"LIBERO's files hold LIBERO's seven action numbers and eight proprio numbers, but '{settings.env}' has "
            f"{spec.action_spec.dim} and {spec.proprio_dim}. Use --to lerobot."
        )
    form = Conversion(to or ("libero-hdf5" if is_liberos(spec) else "lerobot"), codec)
    check_form(form, dict.fromkeys(spec.cameras, spec.image_size))
    if is_recorded(settings, out, form):
        return
    with hold(out, "this recording", wait=wait):
        if not is_recorded(settings, out, form):  # the other process may have recorded it
            _record(settings, out, workers, form)


def is_liberos(spec: EnvironmentSpec) -> bool:
    """Whether a world has LIBERO's actions and proprio, as LIBERO's files hold them."""
    return spec.action_spec == ActionSpec() and spec.proprio_dim == _LIBERO_PROPRIO


def _record(settings: RecordSettings, out: Path, workers: int | None, form: Conversion) -> None:
    parts = out / PARTS
    if read_json_object(out / _MARKER) is None:  # parts and files without a marker may be of any settings
        shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True, exist_ok=True)
    write_json(out / _MARKER, _fingerprint(settings, form))

    spec = environment_spec(settings.env, settings.image_size)
    instructions = spec.instructions or ("",)
    wanted = [(instructions[i % len(instructions)], i) for i in range(settings.episodes)]
    missing = [job for job in wanted if not is_whole(part(parts, job[1]))]
    title = f"recording demonstrations into {out}"
    drawn_by: set[str | None] = set()
    run_jobs(title, len(wanted), missing, _record_part, _start_worker, (settings, parts), workers, on_done=drawn_by.add)
    for renderer in drawn_by:
        tell_of_software(settings.env, renderer)
    if form.to == "lerobot" and is_liberos(spec):
        _write_files(settings, wanted, parts, parts / "demonstrations")
        move_as_lerobot(LiberoDataset(parts / "demonstrations"), out, form, workers)
    elif form.to == "lerobot":
        move_as_lerobot(RecordedParts(parts, range(len(wanted)), spec.action_spec, settings.env), out, form, workers)
    else:
        _write_files(settings, wanted, parts, out)
        for place in (*out.glob("*_demo.hdf5"), out):  # before the parts are removed
            sync(place)
    shutil.rmtree(parts)


def _write_files(settings: RecordSettings, wanted: list[tuple[str, int]], parts: Path, folder: Path) -> None:
    """Join the parts in LIBERO's layout, one file per instruction."""
    env_args = {"env_name": settings.env, "type": 1, "env_kwargs": {"control_freq": 20, **settings.facts()}}
    for instruction in dict(wanted):
        file = folder / f"{instruction.replace(' ', '_')}_demo.hdf5"
        numbers = [number for task, number in wanted if task == instruction]
        write_libero_file(file, instruction, read_parts(parts, numbers), env_args)


def move_as_lerobot(recorded: EpisodeDataset, out: Path, form: Conversion, workers: int | None) -> None:
    """Convert the recording in the folder of its parts, and move the result's folders into `out`."""
    copy = out / PARTS / "lerobot"
    convert(recorded, copy, form, workers)
    for folder in sorted(copy.iterdir(), key=lambda path: path.name == "meta"):  # meta, which marks completeness, last
        if folder.is_dir():
            shutil.rmtree(out / folder.name, ignore_errors=True)  # left by a recording that was stopped here
            folder.rename(out / folder.name)


def is_recorded(settings: RecordSettings, out: Path, form: Conversion = _AS_LIBERO) -> bool:
    """Whether `out` holds a complete recording of these settings; False where it is missing or unfinished.

    Raises InputError where the folder holds something else.
    """
    found, asked = read_json_object(out / _MARKER), _fingerprint(settings, form)
    if found is None:
        others = {path.name for path in out.iterdir()} - {LOCK, PARTS} if out.exists() else set()
        if others and _MARKER not in others:
            raise InputError(f"{out} is not empty and does not hold an Atlas recording; give another folder.")
        return False
    if found != asked:
        differing = ", ".join(
            f"{key}: {found.get(key)} there, {asked.get(key)} asked"
            for key in {**asked, **found}
            if found.get(key) != asked.get(key)
        )
        raise InputError(f"{out} holds another recording ({differing}). Remove it, or give another folder.")
    whole = (out / "meta").is_dir() if form.to == "lerobot" else any(out.glob("*_demo.hdf5"))
    return whole and not (out / PARTS).exists()


def _fingerprint(settings: RecordSettings, form: Conversion) -> dict[str, Any]:
    as_lerobot = {"to": form.to, "codec": form.codec or DEFAULT_CODEC} if form.to == "lerobot" else {}
    return {"format": _FORMAT, **settings.facts(), **as_lerobot}


def record_episode(
    env: Environment, instruction: str, seed: int, number: int, randomize: Sequence[PerturbationChoice] = ()
) -> RecordedEpisode:
    """One successful demonstration, a pure function of (instruction, seed, number, randomize)."""
    demonstrator = find_demonstrator(env.spec.name)
    for attempt in range(_MAX_TRIES):
        start = episode_seed("record", seed, number * _MAX_TRIES + attempt)
        if isinstance(env, VariableScene):
            env.vary(draw_scene(randomize, start, env.spec))
        observation = env.reset(seed=start, instruction=instruction)
        expert = demonstrator(env, np.random.default_rng([start, 1]))
        columns: dict[str, list[Any]] = {k: [] for k in ("images", "proprio", "joints", "actions", "rewards", "states")}
        while True:
            action = expert.act()
            columns["images"].append(observation.images)
            columns["proprio"].append(observation.proprio)
            if isinstance(env, DescribesRobot):
                columns["joints"].append(env.joint_positions())
            if isinstance(env, Simulator):
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
                joints=np.stack(columns["joints"]) if columns["joints"] else None,
                actions=np.stack(columns["actions"]),
                rewards=np.array(columns["rewards"], np.float32),
                sim_states=np.stack(columns["states"]) if columns["states"] else None,
                model_xml=env.model_xml if isinstance(env, DescribesRobot) else None,
            )
    raise RuntimeError(f"the expert failed {_MAX_TRIES} times in a row at episode {number}: '{instruction}'")


# ---- in the worker processes -----------------------------------------------------------------------------

# Each process has one environment.
_worker: tuple[Any, RecordSettings, Path, list[PerturbationChoice]] | None = None


def _start_worker(settings: RecordSettings, parts: Path) -> None:
    global _worker
    render_on(RenderingGPU.first_shown())  # the GPU that training will use; others may be taken
    env = make_environment(settings.env, settings.image_size)
    _worker = env, settings, parts, choose_randomization(settings.randomize, env.spec)


def _record_part(job: tuple[str, int]) -> str | None:
    """Record one episode; returns the software renderer, or None where a GPU rendered."""
    assert _worker is not None
    env, settings, parts, randomize = _worker
    instruction, number = job
    episode = record_episode(env, instruction, settings.seed, number, randomize)
    write_part(parts, number, episode)
    return software_renderer()
