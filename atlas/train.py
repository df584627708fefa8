"""Builds everything from a config and trains: `atlas.train(config, overrides=[...]) -> Result`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.config import Config
from atlas.prepare import environment_of, load_run_config, prepare, run_dir_of
from atlas.runs.run_directory import RESULTS
from atlas.system.files import follow, write_json
from atlas.system.threads import yield_cores

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atlas.checkpoints.state import TrainingState
    from atlas.data.chunks import ChunkDataset
    from atlas.data.episode import EpisodeDataset
    from atlas.policies.base import InstructionMemory, Policy
    from atlas.rollout.success_report import EvaluationReport
    from atlas.tracking import RunTracker
    from atlas.training import Trainer

logger = logging.getLogger(__name__)

_FAILED_RANK_SECONDS = 15.0  # for what it has logged; its launcher ends it soon after
INSTRUCTIONS = "instructions.safetensors"  # in the run's folder: what a frozen language encoder says of them


@dataclass(frozen=True)
class Result:
    """What training leaves behind."""

    run_dir: Path
    best_checkpoint: Path
    metrics: dict[str, float]  # the latest value of every metric
    final_evaluation: EvaluationReport | None  # of the best checkpoint; None without rollouts


def train(
    config: Config | dict[str, Any] | str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
) -> Result:
    """Train in this process: one GPU where there is one, else the CPU; under `torchrun`, one rank of several.

    config: a YAML file, a mapping or a Config; None is the default job. overrides: 'training.max_steps=100', … on top.
    resume: a run or a checkpoint to go on from; 'auto': this run's latest checkpoint, if it has one.
    Raises InputError, before anything is touched, where the input is wrong; Interrupted after a signal.
    """
    from atlas.launch import end_at_once, on_first_rank

    yield_cores()
    with ExitStack() as locks:
        prepared = on_first_rank(lambda: prepare(load_run_config(config, overrides, resume), resume, locks))
        try:
            return run(*prepared)
        except BaseException as error:
            end_at_once(getattr(error, "exit_code", 1), error)
            raise


def run(config: Config, checkpoint: Path | None = None) -> Result:
    """Train with a prepared config, as the only process or as one rank of several."""
    from atlas.launch import launcher_folder, leave_error
    from atlas.tracking.node_runs import join_as_node
    from atlas.tracking.sinks.console import NOT_ON_TERMINAL, setup_logging
    from atlas.training.guards.watchdog import Watchdog

    accelerator = make_accelerator(config)
    run_dir = run_dir_of(config)
    undo_logging = setup_logging(run_dir, accelerator.is_main_process, accelerator.process_index)
    exit_code = 1
    trainer, closed_loop, node = None, None, None
    try:
        with Watchdog(60 * config.distributed.timeout_minutes, accelerator.process_index, run_dir) as watchdog:
            trainer = build_trainer(config, accelerator, checkpoint, watchdog.beat)
            closed_loop = trainer.closed_loop
            node = join_as_node(config, run_dir, trainer.tracker, accelerator)
            metrics = trainer.train()
            result = _finish(config, trainer, metrics)
        trainer.keeper.check()
        exit_code = 0
        return result
    except BaseException as error:
        leave_error(error)
        exit_code = getattr(error, "exit_code", 1)
        if not hasattr(error, "exit_code") and not isinstance(error, KeyboardInterrupt):
            logger.error("Training failed", exc_info=error, extra=NOT_ON_TERMINAL)  # whoever catches it shows it there
        raise
    finally:
        if closed_loop is not None:
            closed_loop.close()
        with _undisturbed(accelerator):
            if trainer is not None:
                failed_rank = exit_code in (1, 2) and launcher_folder() is not None
                trainer.tracker.finish(exit_code, _FAILED_RANK_SECONDS if failed_rank else None)
            if node is not None:
                node.finish(exit_code)
            if exit_code not in (1, 2):  # all ranks come through here: none leaves while one still uploads
                accelerator.wait_for_everyone()
        undo_logging()
        if exit_code not in (1, 2) or accelerator.num_processes == 1:  # else others may wait: see `end_at_once`
            accelerator.end_training()


@contextmanager
def _undisturbed(accelerator: Accelerator) -> Iterator[None]:
    """Let this rank end in good order when another has ended first: the launcher then sends a SIGTERM to the rest."""
    from atlas.training.guards.signals import listening

    if accelerator.num_processes == 1:
        yield
        return
    with listening([signal.SIGTERM]):
        yield


def build_trainer(
    config: Config,
    accelerator: Accelerator,
    checkpoint: Path | None = None,
    beat: Callable[[str], None] = lambda what: None,
) -> Trainer:
    """The dataset, the policy, the tracker and the trainer that a prepared config describes.

    beat: is told what was done, again and again.
    """
    import torch

    from atlas.checkpoints import load_state
    from atlas.checkpoints.snapshot import load_split
    from atlas.checks.inspection import check_before_training
    from atlas.data.kept_split import episode_identities
    from atlas.data.order import TrainOrder
    from atlas.data.training_data import open_training_data
    from atlas.policies.base import LearnsFromTeacher, RemembersInstructions, load_policy
    from atlas.tracking import Resumed, RunTracker
    from atlas.training import Trainer
    from atlas.training.media.loggers import MediaLoggers
    from atlas.training.perf.worker_room import settle_workers
    from atlas.training.publishing import Publisher, run_facts
    from atlas.training.schedule import make_schedule, say_change

    kept = load_split(checkpoint) if checkpoint is not None else None
    data = open_training_data(config, kept)
    dataset, cameras, train_data, val_data = data.dataset, data.cameras, data.train, data.val
    if accelerator.is_main_process:
        sides = train_data.episodes, val_data.episodes
        for warning in check_before_training(dataset, *sides, config.model.processor):
            logger.warning("%s", warning)
        if kept is not None and (change := kept.change(episode_identities(dataset))):
            logger.warning("The dataset has changed since the checkpoint: %s. Its scaling stays as it was.", change)
    torch.manual_seed(config.seed)  # the same weights on every rank
    policy = _make_policy(config, dataset, train_data, cameras) if checkpoint is None else load_policy(checkpoint)
    if isinstance(policy, LearnsFromTeacher):
        policy.hire_teacher()
    if config.data.feature_cache is not None:
        _use_features(config, dataset, cameras, policy, train_data, val_data)
    memory = policy.instruction_memory if isinstance(policy, RemembersInstructions) else None
    if memory is not None:
        share_embeddings(memory, dataset.tasks, run_dir_of(config) / INSTRUCTIONS, accelerator, checkpoint is not None)
    torch.manual_seed(config.seed + 1 + accelerator.process_index)
    state = load_state(checkpoint) if checkpoint is not None else None
    config = _settle_batch_size(config, policy, train_data, accelerator, state)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    config = settle_workers(config, data, accelerator.device, ranks)

    settings = config.training
    order = TrainOrder(
        data.draws,
        config.seed,
        config.data.batch_samples,
        settings.gradient_accumulation_steps,
        accelerator.num_processes,
        (state.step, state.samples_seen) if state is not None else (0, 0),
    )
    steps = settings.max_steps or order.steps_for(settings.num_epochs or 1)
    schedule = make_schedule(config, steps, state.rate_steps if state is not None else None)
    if state is not None and accelerator.is_main_process:
        say_change(config, schedule, state)
    run_dir = run_dir_of(config)
    tracker = RunTracker(
        run_dir,
        str(config.run_name),
        config.wandb,
        config.logging,
        is_main=accelerator.is_main_process,
        resumed=Resumed(state.step, state.wandb_id, state.wandb_row) if state else None,
        total_steps=schedule.max_steps,
        models=config.model_management,
    )
    trainer = Trainer(
        config,
        policy,
        data,
        run_dir,
        accelerator,
        tracker,
        schedule,
        _make_closed_loop(config, dataset, policy, accelerator, tracker, beat),
        checkpoint,
        MediaLoggers(config, schedule, dataset, cameras, train_data, val_data, accelerator, tracker),
        Publisher(
            config,
            tracker,
            run_facts(config, policy, dataset),
            accelerator.is_main_process,
            state.checkpoints if state else 0,
        ),
        beat,
    )
    _announce(config, trainer, dataset)
    return trainer


def share_embeddings(
    memory: InstructionMemory, instructions: Sequence[str], file: Path, accelerator: Accelerator, resumed: bool
) -> None:
    """Have a frozen language encoder read each instruction once in the life of a run: each process some of them, on
    the device that it has."""
    from accelerate.utils import gather_object

    if resumed and file.exists():
        memory.load_embeddings(file)
    new = memory.unknown(instructions)
    memory.to(accelerator.device)
    mine = memory.encode(new[accelerator.process_index :: accelerator.num_processes])
    memory.to("cpu")  # until all of the policy goes
    found = {text: tokens for part in gather_object([mine]) for text, tokens in part.items()}
    memory.remember({text: found[text] for text in new})
    if accelerator.is_main_process:
        memory.save_embeddings(file)


def _use_features(
    config: Config,
    dataset: EpisodeDataset,
    cameras: Sequence[str],
    policy: Policy,
    train_data: ChunkDataset,
    val_data: ChunkDataset,
) -> None:
    """Read a frozen encoder's features in place of images. Raises InputError where they are of something else."""
    from atlas.data.feature_cache import FeatureCache
    from atlas.policies.base import ReadsFeatures
    from atlas.policies.feature_cache_filling import cache_source

    assert config.data.feature_cache is not None and isinstance(policy, ReadsFeatures)
    cache = FeatureCache.read(Path(config.data.feature_cache))
    versions = cache.layout.versions
    cache.check(cache_source(config, dataset, cameras, policy.cached_encoder_hash(), versions))
    cache.check_complete()
    train_data.use_features(cache, augmented=True)
    val_data.use_features(cache, augmented=False)
    how = f"{versions - 1} augmented versions of each frame" if versions > 1 else "without augmentation"
    logger.info("Features of %s in place of images, %s", cache.folder, how)


def _settle_batch_size(
    config: Config,
    policy: Policy,
    train_data: ChunkDataset,
    accelerator: Accelerator,
    state: TrainingState | None,
) -> Config:
    """The config with a number for `data.batch_size`: that of a run that goes on, or the largest that fits."""
    from atlas.training.perf.batch_size import find_batch_size

    if config.data.batch_size != "auto":
        return config
    found = state.batch_size if state is not None else None
    if found is None:
        found = find_batch_size(config, policy, train_data, accelerator)
    return config.model_copy(update={"data": config.data.model_copy(update={"batch_size": found})})


def make_accelerator(config: Config) -> Accelerator:
    """This process's part of the run's processes and devices. Raises InputError where they are not there."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    from atlas.launch import check_gpu_of_rank, settle_device
    from atlas.launch.numa import stay_near_gpu
    from atlas.system.gpu_facts import has_bf16
    from atlas.training.parallel.block_setup import set_tf32
    from atlas.training.parallel.strategy import ddp_settings

    set_tf32(config.training.tf32)
    cpu = settle_device(config.distributed) == "cpu"
    if not cpu:
        check_gpu_of_rank(config.distributed)
        stay_near_gpu()
    precision = config.training.precision
    bf16 = precision == "bf16" or (precision == "auto" and not cpu and has_bf16())
    return Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if bf16 else "no",
        kwargs_handlers=[
            ddp_settings(config.training),
            InitProcessGroupKwargs(timeout=config.distributed.group_timeout),
        ],
    )


def _make_policy(config: Config, dataset: EpisodeDataset, train_data: ChunkDataset, cameras: Sequence[str]) -> Policy:
    from atlas.data.inputs import summarise_inputs
    from atlas.policies.processor import PolicyProcessor, scaled_well

    processor = PolicyProcessor(
        cameras=tuple(cameras),
        camera_size=min(min(dataset.image_size(camera)) for camera in cameras),
        image_size=config.data.image_size,
        action_horizon=config.data.action_horizon,
        proprio_dim=dataset.proprio_dim,
        action_spec=dataset.action_spec,
        statistics=tuple(scaled_well(s, config.model.processor) for s in train_data.statistics()),
        scaling=config.model.processor,
        inputs=summarise_inputs(dataset, train_data.episodes, cameras, config.data.image_size),
    )
    policy: Policy = config.model.build(processor)
    return policy


def _make_closed_loop(
    config: Config,
    dataset: EpisodeDataset,
    policy: Policy,
    accelerator: Accelerator,
    tracker: RunTracker,
    beat: Callable[[str], None],
) -> Any:
    """The closed-loop evaluation, or None where there is no world for the data or no episodes are asked for."""
    from atlas.environments.catalog import environment_spec
    from atlas.rollout.evaluation import check_agreement
    from atlas.training.closed_loop import ClosedLoop
    from atlas.training.media.episode_logger import EpisodeLogger

    env = environment_of(config, dataset)
    if env is None:
        reason = "evaluation.episodes is 0" if config.evaluation.episodes == 0 else "no simulator for this dataset"
        logger.info("No closed-loop evaluation: %s", reason)
        return None
    check_agreement(policy.processor, environment_spec(env))
    episode_logger = EpisodeLogger(config.logging.media.episode_logger, tracker)
    seed, run_dir = config.evaluation.seed, run_dir_of(config)
    return ClosedLoop(config.evaluation, env, seed, accelerator, run_dir, episode_logger, beat)


def _announce(config: Config, trainer: Trainer, dataset: EpisodeDataset) -> None:
    """Say at the start what will run, and log it as the run's config; on the main rank, which is heard."""
    if not trainer.accelerator.is_main_process:
        return
    from atlas.tracking.provenance import provenance

    policy = trainer.policy
    total = sum(p.numel() for p in policy.parameters())
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    device, world = trainer.accelerator.device, trainer.accelerator.num_processes
    facts = {
        **provenance(),
        "world_size": world,
        "device": device.type,
        "parameters": {"total": total, "trainable": trainable},
    }
    trainer.tracker.log_config({**config.model_dump(mode="json"), "run": facts})
    trainer.tracker.log(
        {
            "train/restart": trainer.state.restarts,
            "model/total_parameters": total,
            "model/trainable_parameters": trainable,
            "model/file_size_mb": sum(v.numel() * v.element_size() for v in policy.own_state_dict().values()) / 1e6,
        }
    )
    logger.info("Run %s: %d process%s on %s", trainer.run_dir, world, "" if world == 1 else "es", device.type)
    logger.info(
        "%s: %d episodes of %d tasks; %d training and %d validation samples",
        dataset.path,
        len(dataset),
        len(dataset.tasks),
        len(trainer.train_data),
        len(trainer.val_data),
    )
    logger.info(
        "%s parameters (%s trainable); steps %d to %d of %d samples",
        f"{total:,}",
        f"{trainable:,}",
        trainer.state.step,
        trainer.schedule.max_steps,
        trainer.order.samples_a_step,
    )


def _finish(config: Config, trainer: Trainer, metrics: dict[str, float]) -> Result:
    """Evaluate the best checkpoint on episodes that did not choose it, and report."""
    from atlas.policies.base import load_policy
    from atlas.training.final_summary import final_summary

    root = trainer.keeper.checkpoints.root
    link = root / "best" if (root / "best").exists() else root / "latest"
    if not link.exists():
        trainer.keeper.check()
    best_checkpoint = follow(link)
    report = None
    if trainer.closed_loop is not None and config.evaluation.final_episodes:
        policy = load_policy(best_checkpoint).to(trainer.accelerator.device)
        report = trainer.closed_loop.run(
            policy,
            "final",
            config.evaluation.final_episodes,
            str(best_checkpoint),
            int(best_checkpoint.name.removeprefix("step_")),
            config.evaluation.video,
        )
    if trainer.accelerator.is_main_process:
        write_json(
            trainer.run_dir / RESULTS,
            {
                "best_checkpoint": str(best_checkpoint),
                "metrics": metrics,
                "final_evaluation": report.to_dict() if report else None,
            },
        )
        logger.info("%s", final_summary(trainer.run_dir, best_checkpoint, metrics, report))
    return Result(trainer.run_dir, best_checkpoint, metrics, report)


class _CallableModule(types.ModuleType):
    """Lets `atlas.train` be both this module and, as the documentation has it, the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
