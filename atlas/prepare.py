"""Everything that is settled once, before the ranks start: whether the input is right, which run it is, where it
resumes from."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.config import Config, DataConfig, dump_yaml, load_config
from atlas.config.model_section import MODEL
from atlas.config.section import differences
from atlas.errors import InputError
from atlas.runs.run_directory import LEARNING, RESULTS
from atlas.system.documents import read_yaml
from atlas.system.file_store import CONFIG
from atlas.system.files import write_text
from atlas.system.locks import check_free, hold
from atlas.system.paths import check_folder

if TYPE_CHECKING:
    from atlas.data.episode import EpisodeDataset
    from atlas.data.training_data import TrainingData
    from atlas.training.prepared_run import PreparedRun


def load_run_config(
    config: Config | dict[str, Any] | str | Path | None, overrides: Sequence[str], resume: str | Path | None
) -> Config:
    """The config of a run. Without one, a run that is resumed by its folder keeps its own."""
    if config is None and _is_artifact(resume):
        # The folder for outputs is that of the machine it was saved on.
        config = load_config(_fetched(str(resume)) / CONFIG).model_copy(update={"output_dir": Config().output_dir})
    elif config is None and resume is not None and str(resume) != "auto":
        from atlas.checkpoints import find_checkpoint

        config = find_checkpoint(Path(resume)).parent.parent / CONFIG
    return load_config(config, overrides)


def prepare_once(make: Callable[[], PreparedRun]) -> PreparedRun:
    """The result of `make`; under a plain torchrun only the first rank calls it, and the others open the same run."""
    from atlas.launch import on_first_rank
    from atlas.training.prepared_run import PreparedRun

    made: list[PreparedRun] = []

    def prepare_here() -> tuple[Config, Path | None]:
        made.append(make())
        return made[0].config, made[0].checkpoint

    settled = on_first_rank(prepare_here)
    return made[0] if made else PreparedRun(*settled)


def prepare(config: Config, resume: str | Path | None = None, locks: ExitStack | None = None) -> PreparedRun:
    """Check everything that can be checked, record missing demonstrations, and create the run's folder with its config.

    The returned run has its name and the checkpoint to resume from. locks: keeps the lock of the run's folder for as
    long as the run is trained; without it, the lock is released at the end. Raises InputError.
    """
    with ExitStack() as own:
        return _prepare(config, resume, own if locks is None else locks)


def record_default(data: DataConfig) -> None:
    """Record the demonstrations of the default dataset, where that is what is read and it is not there.

    Raises InputError where its folder holds another recording.
    """
    from atlas.rollout.recording import RecordSettings, record

    if data.reads_default:
        record(RecordSettings(**data.record.model_dump()), Path(DataConfig().path), wait=True)


def _prepare(config: Config, resume: str | Path | None, locks: ExitStack) -> PreparedRun:
    from atlas.checkpoints import Checkpoints
    from atlas.config.secrets import without_keys
    from atlas.data.caches.frame_cache import fill_caches
    from atlas.data.sampling.relative_actions import relative_actions
    from atlas.data.training_data import read_cached_frames
    from atlas.launch import settle_device
    from atlas.policies.feature_cache_filling import check_cache
    from atlas.registry.wandb_variables import check_variables, with_variables
    from atlas.training.media.projection import check_method
    from atlas.training.prepared_run import PreparedRun

    device = settle_device(config.distributed)
    check_variables(config.wandb)
    named = config.run_name is not None
    config, checkpoint = _settle_run(config, resume)
    config = without_keys(config.model_copy(update={"wandb": with_variables(config.wandb, os.environ)}))
    check_folder("The run's folder (output_dir and run_name)", config.run_dir)
    if checkpoint is not None:
        _check_fits(checkpoint, config)
    record_default(config.data)
    prepared = PreparedRun(config, checkpoint)
    prepared.data = data = _open_data(prepared)
    _check_data(prepared)
    config.model.check_pretrained(prepared.begun)
    config.model.check_dataset(data.cameras, data.dataset.action_spec, data.dataset.proprio_dim, prepared.begun)
    relative_actions(data.dataset, config.model.processor)  # refuses what cannot be relative
    if config.data.feature_cache is not None:
        check_cache(config, data.dataset, data.cameras)
    _check_machine(config, device)
    check_method(config.logging.media.vis_dataset)
    if config.data.frame_cache is not None:
        fill_caches(Path(config.data.frame_cache), data.dataset, data.cameras, data.train.pixels_to_cache)
        read_cached_frames(config, data)
    if not named and checkpoint is None:
        prepared.config = config = _with_name_of_its_own(config)
    run_dir = prepared.run_dir
    locks.enter_context(hold(run_dir, _what(run_dir)))
    write_text(run_dir / CONFIG, dump_yaml(config))
    checkpoints = Checkpoints(run_dir, config.checkpoint.keep_last_n)
    if checkpoint is not None and (_is_artifact(resume) or checkpoint.parent == checkpoints.root.resolve()):
        prepared.checkpoint = checkpoints.adopt(checkpoint)
    return prepared


def _open_data(prepared: PreparedRun) -> TrainingData:
    """The data of a run, split, before its caches are filled. Raises InputError."""
    from atlas.data.formats import open_configured
    from atlas.data.training_data import split_data

    config = prepared.config
    dataset, cameras = open_configured(config.data)
    longest = int(dataset.lengths.max())
    if config.data.action_horizon > longest:
        raise InputError(
            f"data.action_horizon is {config.data.action_horizon}, longer than every episode of {dataset.path} "
            f"(the longest has {longest} frames)."
        )
    return split_data(config, dataset, cameras, prepared.kept_split, prepared.begun)


def _with_name_of_its_own(config: Config) -> Config:
    """Create the folder of an unnamed run, with a number appended if another one was begun in the same second."""
    number, name = 1, config.run_name
    while True:
        try:
            config.run_dir.mkdir(parents=True)
            return config
        except FileExistsError:
            number += 1
            config = config.model_copy(update={"run_name": f"{name}-{number}"})


def _what(run_dir: Path) -> str:
    return f"the run '{run_dir.name}'"


def _check_usable(run_dir: Path) -> None:
    """Refuse the folder of a run that another process trains, or that learns from experience. Raises InputError."""
    check_free(run_dir, _what(run_dir))
    if (run_dir / LEARNING).exists():
        raise InputError(
            f"{run_dir} is a run of atlas learn: the command that began it also continues it. Choose another run_name "
            "for training."
        )


def _settle_run(config: Config, resume: str | Path | None) -> tuple[Config, Path | None]:
    """Name the run; refuse to overwrite an existing one; find the checkpoint to resume from, undamaged."""
    from atlas.checkpoints import find_checkpoint, find_undamaged, saved_steps, verify

    if _is_artifact(resume):
        checkpoint = _fetched(str(resume))
        name = config.run_name or load_config(checkpoint / CONFIG).run_name
        config = config.model_copy(update={"run_name": name})
        _check_usable(config.run_dir)
        _check_same_run(checkpoint, config.run_dir, str(resume))
        return config, checkpoint
    if resume is not None and str(resume) != "auto":
        checkpoint = find_checkpoint(Path(resume))
        run_dir = checkpoint.parent.parent
        _check_usable(run_dir)
        verify(checkpoint)
        settled = {"run_name": run_dir.name, "output_dir": str(run_dir.parent)}
        return config.model_copy(update=settled), checkpoint
    if config.run_name is None and resume is not None:
        unfinished = _newest_unfinished_run(config)
        if unfinished is not None:
            _check_usable(unfinished)
            return config.model_copy(update={"run_name": unfinished.name}), find_undamaged(unfinished)
    if config.run_name is None:
        name = f"atlas-{config.data.label}-{config.model.label}-lr{config.training.learning_rate:g}"
        when = time.strftime("%Y%m%d-%H%M%S")
        if "WANDB_SWEEP_ID" in os.environ and (trial := os.environ.get("WANDB_RUN_ID")):
            when += f"-{trial}"
        return config.model_copy(update={"run_name": f"{name}-{when}"}), None
    run_dir = config.run_dir
    _check_usable(run_dir)
    if not saved_steps(run_dir / "checkpoints"):
        return config, None
    if resume is None:
        raise InputError(
            f"The run '{config.run_name}' in {config.output_dir} already has checkpoints. Continue it with "
            f"--resume auto, or choose another run_name."
        )
    return config, find_undamaged(run_dir)


def _newest_unfinished_run(config: Config) -> Path | None:
    """Return the run that `--resume auto` means without a run_name: the last run of this data and model that did not
    finish."""
    from atlas.checkpoints import saved_steps

    roots = [root for root in Path(config.output_dir).glob("*/checkpoints") if saved_steps(root)]
    roots.sort(key=lambda root: root.stat().st_mtime, reverse=True)  # by when the last checkpoint was put there
    for run_dir in (root.parent for root in roots):
        if not any((run_dir / name).exists() for name in (RESULTS, LEARNING)):
            try:
                was = load_config(run_dir / CONFIG)
            except InputError:
                continue  # a run of another version, or not of Atlas
            if (was.data, was.model) == (config.data, config.model):
                return run_dir
    return None


def _is_artifact(resume: str | Path | None) -> bool:
    from atlas.registry.references import WANDB

    return str(resume).startswith(WANDB)


@functools.cache
def _fetched(reference: str) -> Path:
    """The checkpoint in wandb's artifact, looked up once: an alias may move meanwhile."""
    from atlas.registry import fetch_checkpoint

    return fetch_checkpoint(reference)


def _check_same_run(checkpoint: Path, run_dir: Path, reference: str) -> None:
    """Refuse to continue in the folder of another run that has the same name."""
    from atlas.checkpoints import find_checkpoint, load_state, saved_steps

    if not saved_steps(run_dir / "checkpoints"):
        return
    if load_state(find_checkpoint(run_dir)).wandb_id != load_state(checkpoint).wandb_id:
        raise InputError(
            f"{run_dir} is a different run from {reference}. Choose another run_name, or another output_dir."
        )


def _check_fits(checkpoint: Path, config: Config) -> None:
    """Refuse to resume from a checkpoint whose policy differs from the config's, or that is further along."""
    from atlas.checkpoints import load_state
    from atlas.checkpoints.shards import has_trained_weights
    from atlas.policies.processor import PolicyProcessor
    from atlas.training.parallel.strategy import check_average

    check_average(checkpoint, has_trained_weights(checkpoint), config.training.ema_decay > 0)
    file = checkpoint / "policy" / CONFIG
    try:
        saved = read_yaml(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); the checkpoint is damaged.") from None
    with contextlib.suppress(ValueError):  # if it is not a config of a model, it differs in any case
        saved = MODEL.validate(saved).model_dump(mode="json")  # fills in keys that are newer than the checkpoint
    differing = differences("model", saved, config.model.model_dump(mode="json"))
    processor = PolicyProcessor.load(checkpoint / "policy" / "processor.json")
    for key, was in (("image_size", processor.image_size), ("action_horizon", processor.action_horizon)):
        if getattr(config.data, key) != was:
            differing.append(f"data.{key} was {was} and is {getattr(config.data, key)}")
    if differing:
        raise InputError(f"The checkpoint {checkpoint} does not fit the config: {'; '.join(differing)}.")
    step, wanted = load_state(checkpoint).step, config.training.max_steps
    if wanted is not None and wanted < step:
        raise InputError(
            f"training.max_steps is {wanted}, but the checkpoint {checkpoint} is already at step {step}. Set it to "
            f"{step} or more, or resume from an earlier checkpoint."
        )


def _check_data(prepared: PreparedRun) -> None:
    """Raises InputError for data that cannot be trained on, or not with this config. Keeps warnings in the run."""
    import torch

    from atlas.environments.catalog import environment_spec
    from atlas.environments.gym.gym_name import gym_name
    from atlas.rollout.chunk_timeline import check_execution
    from atlas.training.guards.resumed_data import check_resumed
    from atlas.training.judging.selection import check_metrics
    from atlas.training.perf.worker_room import settle_workers
    from atlas.training.warm_start import check_start

    config, data, checkpoint = prepared.config, prepared.data, prepared.checkpoint
    _ = prepared.warnings  # raises if there is something worse
    if checkpoint is not None:
        check_resumed(checkpoint, config, data, prepared.kept_split)
        _check_epochs(checkpoint, config, len(data.draws))
    elif config.training.start_from is not None:
        check_start(config.training.start_from, config, data)
    if config.data.num_workers and config.data.batch_size != "auto":
        settle_workers(config, data, torch.device("cpu"), ranks=1)
    if (named := gym_name(config.evaluation.env, config.evaluation.gym)) not in ("auto", "none"):
        environment_spec(named)
    env = environment_of(config, data.dataset)
    _check_perturbations(config, env)
    if env is not None:
        check_execution(
            config.data.action_horizon,
            data.dataset.action_spec.control_hz,
            config.evaluation.execute,
            config.evaluation.ensemble,
            config.evaluation.delay_ms,
            config.evaluation.blend,
        )
    world = None if env is None else environment_spec(env)
    check_metrics(config, data.dataset.action_spec, data.dataset.tasks, world, validation=len(data.val) > 0)


def _check_perturbations(config: Config, env: str | None) -> None:
    """Refuse perturbations that there are not, that the world lacks, or that nothing would play."""
    from atlas.environments.catalog import environment_spec
    from atlas.environments.perturbations.choices import choose_perturbations

    asked, evaluation = config.evaluation.perturbations, config.evaluation
    if not asked:
        return
    if env is None or not evaluation.final_episodes:
        raise InputError(
            "evaluation.perturbations are played after training, and there are no rollouts then: the data has no "
            "simulator, or evaluation.episodes or evaluation.final_episodes is 0."
        )
    choose_perturbations(asked, environment_spec(env))


def _check_epochs(checkpoint: Path, config: Config, samples: int) -> None:
    """Refuse to resume for fewer epochs than are done. samples: per epoch."""
    from atlas.checkpoints import load_state

    state, epochs = load_state(checkpoint), config.training.num_epochs
    beyond = state.samples_seen - samples * (epochs or 0)
    if epochs is not None and state.step and beyond > state.samples_seen / state.step:  # the last step may go beyond
        raise InputError(
            f"training.num_epochs is {epochs}, but the checkpoint {checkpoint} has already done "
            f"{state.samples_seen / samples:.4g} epochs. Set it to more, or resume from an earlier checkpoint."
        )


def _check_machine(config: Config, device: str) -> None:
    from atlas.training.parallel.block_setup import check_blocks
    from atlas.training.perf.batch_size import check_batch_size

    check_batch_size(config, device == "cuda")
    check_blocks(config, device == "cuda")


def environment_of(config: Config, dataset: EpisodeDataset) -> str | None:
    """The world for closed-loop evaluation; None if there is none for the data, or no episodes are asked for."""
    from atlas.environments.gym.gym_name import gym_name

    named = gym_name(config.evaluation.env, config.evaluation.gym)
    env = dataset.environment if named == "auto" else named
    return None if env in (None, "none") or config.evaluation.episodes == 0 else env
