"""Builds everything from a config and trains: `atlas.train(config, overrides=[...]) -> Result`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.config import Config
from atlas.prepare import environment_of, load_run_config, prepare, prepare_once
from atlas.runs.run_directory import RESULTS
from atlas.system.files import follow, write_json
from atlas.system.process_control.threads import yield_cores
from atlas.system.safe_text import cause

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from atlas.checkpoints.contents import TrainingState
    from atlas.policies.base import InstructionMemory, Policy
    from atlas.policies.processor import PolicyProcessor
    from atlas.rollout.success_report import EvaluationReport
    from atlas.tracking import RunTracker
    from atlas.training import Trainer
    from atlas.training.judging.closed_loop import ClosedLoop
    from atlas.training.prepared_run import PreparedRun

logger = logging.getLogger(__name__)

_FAILED_RANK_SECONDS = 15.0  # for what a failed rank has logged; its launcher ends it soon after
INSTRUCTIONS = "instructions.safetensors"  # in the run's folder: a frozen language encoder's output for them


@dataclass(frozen=True)
class Result:
    """The results that training leaves behind."""

    run_dir: Path
    best_checkpoint: Path
    metrics: dict[str, float]  # the latest value of every metric
    final_evaluation: EvaluationReport | None  # of the best checkpoint; None without rollouts


def train(
    config: Config | dict[str, Any] | str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
) -> Result:
    """Train in this process: on one GPU if there is one, otherwise the CPU; under `torchrun`, as one rank of several.

    config: a YAML file, a mapping or a Config; None is the default job. overrides: 'training.max_steps=100', … on top.
    resume: a run or a checkpoint to resume from; 'auto': this run's latest checkpoint, if it has one.
    Raises InputError, before anything is touched, if the input is wrong; Interrupted after a signal.
    """
    from atlas.launch import end_at_once

    yield_cores()
    with ExitStack() as locks:
        prepared = prepare_once(lambda: prepare(load_run_config(config, overrides, resume), resume, locks))
        try:
            return run(prepared)
        except BaseException as error:
            end_at_once(getattr(error, "exit_code", 1), error)
            raise


def run(prepared: PreparedRun) -> Result:
    """Train, as the only process or as one rank of several."""
    from atlas.launch import launcher_folder, leave_error
    from atlas.tracking.node_runs import join_as_node
    from atlas.tracking.sinks.console import NOT_ON_TERMINAL, setup_logging
    from atlas.training.guards.watchdog import Watchdog

    config, run_dir = prepared.config, prepared.run_dir
    accelerator = make_accelerator(config)
    rank = accelerator.process_index
    undo_logging = setup_logging(run_dir, accelerator.is_main_process, rank)
    exit_code = 1
    trainer, closed_loop, node = None, None, None
    try:
        with Watchdog(prepared.heartbeat, 60 * config.distributed.timeout_minutes, rank, run_dir):
            trainer = build_trainer(prepared, accelerator)
            closed_loop = trainer.closed_loop
            node = join_as_node(config, run_dir, trainer.tracker, accelerator)
            metrics = trainer.train()
            result = _finish(trainer, metrics, prepared)
        trainer.checkpoint_manager.check()
        exit_code = 0
        return result
    except BaseException as error:
        leave_error(error)
        exit_code = getattr(error, "exit_code", 1)
        if not hasattr(error, "exit_code") and not isinstance(error, KeyboardInterrupt):
            logger.error("Training failed", exc_info=error, extra=NOT_ON_TERMINAL)  # the caller shows it there
        raise
    finally:
        if closed_loop is not None:
            closed_loop.close()
        with _undisturbed(accelerator):
            if trainer is not None:
                failed_rank = exit_code in (1, 2) and launcher_folder() is not None
                trainer.tracker.finish(exit_code, _FAILED_RANK_SECONDS if failed_rank else None)
                if exit_code == 0 and accelerator.is_main_process:
                    _tell(run_dir)
            if node is not None:
                node.finish(exit_code)
            if exit_code not in (1, 2):  # all ranks get here: none leaves while one is still uploading
                accelerator.wait_for_everyone()
        undo_logging()
        if exit_code not in (1, 2) or accelerator.num_processes == 1:  # otherwise others may wait: see `end_at_once`
            accelerator.end_training()


@contextmanager
def _undisturbed(accelerator: Accelerator) -> Iterator[None]:
    """Let this rank end properly if another has ended first: the launcher then sends a SIGTERM to the rest."""
    from atlas.training.guards.signals import listening

    if accelerator.num_processes == 1:
        yield
        return
    with listening([signal.SIGTERM]):
        yield


def build_trainer(prepared: PreparedRun, accelerator: Accelerator) -> Trainer:
    """The policy, the tracker and the trainer of a prepared run."""
    import torch

    from atlas.checkpoints import load_state
    from atlas.policies.base import RemembersInstructions
    from atlas.tracking import Resumed, RunTracker
    from atlas.training import Trainer
    from atlas.training.media.loggers import MediaLoggers
    from atlas.training.perf.memory_estimate import out_of_memory_explained
    from atlas.training.schedule import make_schedule, say_change

    data, checkpoint = prepared.data, prepared.checkpoint
    state = load_state(checkpoint) if checkpoint is not None else None
    if accelerator.is_main_process:
        _warn(prepared)
    torch.manual_seed(prepared.config.seed)  # the same weights on every rank
    # The search for a batch size trains a copy, beside which a second policy on the device would count.
    device = accelerator.device if prepared.config.data.batch_size != "auto" else torch.device("cpu")
    with out_of_memory_explained(prepared.config, len(data.cameras), device):
        policy = make_policy(prepared, device)
    memory = policy.instruction_memory if isinstance(policy, RemembersInstructions) else None
    if memory is not None:
        file = prepared.run_dir / INSTRUCTIONS
        share_embeddings(memory, data.dataset.tasks, file, accelerator, checkpoint is not None)
    torch.manual_seed(prepared.config.seed + 1 + accelerator.process_index)
    config = prepared.config = _settled(prepared, policy, accelerator, state)

    schedule = make_schedule(config, data.draws, accelerator.num_processes, state)
    if state is not None and accelerator.is_main_process:
        say_change(config, schedule, state)
    tracker = RunTracker(
        prepared.run_dir,
        str(config.run_name),
        config.wandb,
        config.logging,
        is_main=accelerator.is_main_process,
        resumed=Resumed(state.step, state.wandb_id, state.wandb_row) if state else None,
        total_steps=schedule.max_steps,
        models=config.model_management,
    )
    closed_loop = _make_closed_loop(prepared, policy, accelerator, tracker)
    media = MediaLoggers(config.logging.media, schedule, data, accelerator, tracker)
    trainer = Trainer(prepared, policy, accelerator, tracker, schedule, closed_loop, media)
    _announce(prepared, trainer)
    return trainer


def _warn(prepared: PreparedRun) -> None:
    """Log what looks wrong in the data, and what has changed in it since the checkpoint."""
    from atlas.data.sampling.kept_split import episode_identities

    for warning in prepared.warnings:
        logger.warning("%s", warning)
    kept = prepared.kept_split
    if kept is not None and (change := kept.change(episode_identities(prepared.data.dataset))):
        logger.warning("The dataset has changed since the checkpoint: %s. Its scaling stays as it was.", change)


def share_embeddings(
    memory: InstructionMemory, instructions: Sequence[str], file: Path, accelerator: Accelerator, resumed: bool
) -> None:
    """Have a frozen language encoder read each instruction once per run: each process reads some of them, on its own
    device."""
    from accelerate.utils import gather_object

    if resumed and file.exists():
        memory.load_embeddings(file)
    new = memory.unknown(instructions)
    memory.to(accelerator.device)
    mine = memory.encode(new[accelerator.process_index :: accelerator.num_processes])
    memory.to("cpu")  # until the whole policy is moved
    found = {text: tokens for part in gather_object([mine]) for text, tokens in part.items()}
    memory.remember({text: found[text] for text in new})
    if accelerator.is_main_process:
        memory.save_embeddings(file)


def _use_features(prepared: PreparedRun, policy: Policy) -> None:
    """Read a frozen encoder's features instead of images. Raises InputError if they were made from something else."""
    from atlas.data.caches.feature_cache import FeatureCache
    from atlas.policies.base import ReadsFeatures
    from atlas.policies.feature_cache_filling import cache_source

    config, data = prepared.config, prepared.data
    assert config.data.feature_cache is not None and isinstance(policy, ReadsFeatures)
    cache = FeatureCache.read(Path(config.data.feature_cache))
    versions = cache.layout.versions
    cache.check(cache_source(config, data.dataset, data.cameras, policy.cached_encoder_hash(), versions))
    cache.check_complete()
    data.train.use_features(cache, augmented=True)
    data.val.use_features(cache, augmented=False)
    how = f"{versions - 1} augmented versions of each frame" if versions > 1 else "without augmentation"
    logger.info("Features of %s instead of images, %s", cache.folder, how)


def _settled(prepared: PreparedRun, policy: Policy, accelerator: Accelerator, state: TrainingState | None) -> Config:
    """The config with numbers for `data.batch_size` (the resumed run's, or the largest that fits) and for
    `data.num_workers`."""
    from atlas.training.perf.batch_size import find_batch_size
    from atlas.training.perf.worker_room import settle_workers

    config, data = prepared.config, prepared.data
    if config.data.batch_size == "auto":
        found = state.batch_size if state is not None else None
        if found is None:
            found = find_batch_size(config, policy, data.train, accelerator)
        config = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": found})})
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return settle_workers(config, data, accelerator.device, ranks)


def make_accelerator(config: Config) -> Accelerator:
    """This process's part of the run's processes and devices. Raises InputError if they do not exist."""
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


def make_policy(prepared: PreparedRun, device: torch.device | None = None) -> Policy:
    """The policy that the config describes, or the checkpoint's, ready to be trained.

    device: where the types that can bring their weights there one by one; others are on the CPU.
    """
    from atlas.policies.base import LearnsFromTeacher, build_policy, load_policy
    from atlas.rollout.chunk_executor import check_guided
    from atlas.training.warm_start import start_policy

    config, checkpoint = prepared.config, prepared.checkpoint
    start = config.training.start_from
    there = device if device is not None and config.model.builds_on_device else "cpu"
    if checkpoint is not None:
        policy = load_policy(checkpoint, device=there)
    elif start is not None:
        policy = start_policy(start, _make_processor(prepared), there)
    else:
        policy = build_policy(config.model, _make_processor(prepared), device=there)
    check_guided(policy, config.evaluation.blend)
    if isinstance(policy, LearnsFromTeacher):
        policy.load_teacher()
    if config.data.feature_cache is not None:
        _use_features(prepared, policy)
    return policy


def _make_processor(prepared: PreparedRun) -> PolicyProcessor:
    from atlas.data.inputs import summarise_inputs
    from atlas.data.sampling.relative_actions import relative_actions
    from atlas.policies.processor import PolicyProcessor, scaled_well

    config, data = prepared.config, prepared.data
    dataset, cameras, size = data.dataset, data.cameras, config.data.image_size
    relative = relative_actions(dataset, config.model.processor)
    if relative is not None:
        logger.info("Actions are relative to the state at the chunk's start: %s.", relative.describe(dataset))
    return PolicyProcessor(
        cameras=tuple(cameras),
        camera_size=min((min(dataset.image_size(camera)) for camera in cameras), default=size),
        image_size=size,
        action_horizon=config.data.action_horizon,
        proprio_dim=dataset.proprio_dim,
        action_spec=dataset.action_spec,
        statistics=tuple(scaled_well(s, config.model.processor) for s in data.train.statistics(relative)),
        scaling=config.model.processor,
        inputs=summarise_inputs(dataset, data.train.episodes, cameras, size),
        fit=config.model.image_fit(prepared.begun),
        history=data.train.history,
        relative=relative,
    )


def _make_closed_loop(
    prepared: PreparedRun, policy: Policy, accelerator: Accelerator, tracker: RunTracker
) -> ClosedLoop | None:
    """The closed-loop evaluation, or None if there is no world for the data or no episodes are asked for."""
    from atlas.environments.catalog import environment_spec
    from atlas.rollout.evaluation import check_policy_fits
    from atlas.training.judging.closed_loop import ClosedLoop
    from atlas.training.media.episode_logger import EpisodeLogger

    config = prepared.config
    env = environment_of(config, prepared.data.dataset)
    if env is None:
        reason = "evaluation.episodes is 0" if config.evaluation.episodes == 0 else "no simulator for this dataset"
        logger.info("No closed-loop evaluation: %s", reason)
        return None
    check_policy_fits(policy.processor, environment_spec(env))
    episode_logger = EpisodeLogger(config.logging.media.episode_logger, tracker)
    return ClosedLoop(config.evaluation, env, accelerator, prepared.run_dir, episode_logger, prepared.heartbeat.beat)


def _announce(prepared: PreparedRun, trainer: Trainer) -> None:
    """Log at the start what will run, and also as the run's config; on the main rank, whose log is shown."""
    if not trainer.accelerator.is_main_process:
        return
    from atlas.data.sampling.balance import describe_draws
    from atlas.tracking.provenance import provenance

    config, data, policy = prepared.config, prepared.data, trainer.policy
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
        data.dataset.path,
        len(data.dataset),
        len(data.dataset.tasks),
        len(data.train),
        len(data.val),
    )
    if config.data.frame_cache is not None:
        logger.info("Frames are read from data.frame_cache, %s.", config.data.frame_cache)
    if len(data.draws.groups) > 1:
        logger.info("An epoch of %d samples has %s.", len(data.draws), describe_draws(data.train, data.draws))
    logger.info(
        "%s parameters (%s trainable); steps %d to %d of %d samples",
        f"{total:,}",
        f"{trainable:,}",
        trainer.state.step,
        trainer.schedule.max_steps,
        trainer.schedule.order.samples_a_step,
    )


def _finish(trainer: Trainer, metrics: dict[str, float], prepared: PreparedRun) -> Result:
    """Evaluate the best checkpoint on episodes that did not choose it, and report."""
    from atlas.rollout.input_recorder import InputRecorder
    from atlas.training.judging.final_evaluation import evaluate_finally, show_finally
    from atlas.training.judging.final_summary import final_summary
    from atlas.training.judging.self_diagnosis import leave_diagnosis

    config, root = trainer.config, trainer.checkpoint_manager.checkpoints.root
    link = root / "best" if (root / "best").exists() else root / "latest"
    if not link.exists():
        trainer.checkpoint_manager.check()
    best_checkpoint = follow(link)
    shown, evaluation = InputRecorder(), config.evaluation
    device, dataset = trainer.accelerator.device, trainer.state.dataset_fingerprint
    found = evaluate_finally(trainer.closed_loop, evaluation, best_checkpoint, device, dataset, shown)
    if trainer.accelerator.is_main_process:
        show_finally(found, trainer.tracker)
        what = {"best_checkpoint": str(best_checkpoint), "metrics": metrics, **found.to_dict()}
        write_json(trainer.run_dir / RESULTS, what)
        of_data = [finding for _, finding in prepared.findings]
        leave_diagnosis(trainer.run_dir, of_data, shown, found.report, evaluation.execute)
        logger.info("%s", final_summary(trainer.run_dir, best_checkpoint, metrics, found))
    return Result(trainer.run_dir, best_checkpoint, metrics, found.report)


def _tell(run_dir: Path) -> None:
    """Write the run's report, once all that it logged is on disk. A failure is logged, and does not fail training."""
    from atlas.report import write_report

    try:
        write_report(run_dir)
    except Exception as error:  # of any kind: it reads everything that the run has left
        logger.warning("The report could not be written: %s", cause(error).rstrip("."))


class _CallableModule(types.ModuleType):
    """Lets `atlas.train` be both this module and, as documented, the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
