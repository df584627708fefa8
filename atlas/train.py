"""Builds everything from a config and trains: `atlas.train(config, overrides=[...]) -> Result`."""

from __future__ import annotations

import logging
import sys
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from atlas.config import Config, DataConfig, dump_yaml, load_config
from atlas.errors import InputError
from atlas.files import write_json, write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atlas.data.chunks import ChunkDataset
    from atlas.data.episode import EpisodeDataset
    from atlas.policy import AtlasPolicy
    from atlas.rollout.report import EvaluationReport
    from atlas.training import Trainer

logger = logging.getLogger(__name__)

RESULTS = "results.json"  # in the run's folder once it is finished
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
    prepared, checkpoint = prepare(load_run_config(config, overrides, resume), resume)
    return run(prepared, checkpoint)


# ---- before the ranks start ------------------------------------------------------------------------------


def load_run_config(
    config: Config | dict[str, Any] | str | Path | None, overrides: Sequence[str], resume: str | Path | None
) -> Config:
    """The config of a run. Without one, a run that is resumed by its folder goes on with its own."""
    if config is None and resume is not None and str(resume) != "auto":
        from atlas.training.checkpoints import find_checkpoint

        config = find_checkpoint(Path(resume)).parent.parent / "config.yaml"
    return load_config(config, overrides)


def prepare(config: Config, resume: str | Path | None = None) -> tuple[Config, Path | None]:
    """Check all that can be checked, record missing demonstrations, and make the run's folder with its config.

    Returns the config with the run's name settled, and the checkpoint to go on from. Raises InputError.
    """
    from atlas.data import open_configured
    from atlas.policy.pretrained import check_pretrained
    from atlas.rollout.record import RecordSettings, record

    config, checkpoint = _settle_run(config, resume)
    if checkpoint is not None:
        _check_fits(checkpoint, config)
    path = Path(config.data.path)
    if config.data.path == DataConfig().path:
        settings = RecordSettings(**config.data.record.model_dump())
        record(settings, path)  # does nothing where they are there
    dataset, _ = open_configured(config.data)
    _check_data(config, dataset)
    check_pretrained(config.model)
    run_dir = _run_dir(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "config.yaml", dump_yaml(config))
    return config, checkpoint


def _settle_run(config: Config, resume: str | Path | None) -> tuple[Config, Path | None]:
    """Name the run; refuse to write over one that is there; find the checkpoint to go on from."""
    from atlas.training.checkpoints import find_checkpoint

    if resume is not None and str(resume) != "auto":
        checkpoint = find_checkpoint(Path(resume))
        run_dir = checkpoint.parent.parent
        settled = {"run_name": run_dir.name, "output_dir": str(run_dir.parent)}
        return config.model_copy(update=settled), checkpoint
    if config.run_name is None and resume is not None:
        unfinished = _newest_unfinished_run(config)
        if unfinished is not None:
            return config.model_copy(update={"run_name": unfinished.name}), find_checkpoint(unfinished)
    if config.run_name is None:
        name = f"atlas-{Path(config.data.path).name}-{config.model.head.name}-lr{config.training.learning_rate:g}"
        return config.model_copy(update={"run_name": f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"}), None
    latest = _run_dir(config) / "checkpoints" / "latest"
    if not latest.exists():
        return config, None
    if resume is None:
        raise InputError(
            f"The run '{config.run_name}' in {config.output_dir} has checkpoints already. Continue it with "
            f"--resume auto, or choose another run_name."
        )
    return config, find_checkpoint(latest)


def _newest_unfinished_run(config: Config) -> Path | None:
    """What `--resume auto` means without a run_name: the last run of this data and model that did not end."""
    saved = sorted(Path(config.output_dir).glob("*/checkpoints/latest"), key=lambda p: p.stat().st_mtime, reverse=True)
    for run_dir in (link.parent.parent for link in saved):
        if not (run_dir / RESULTS).exists():
            was = load_config(run_dir / "config.yaml")
            if (was.data, was.model) == (config.data, config.model):
                return run_dir
    return None


def _check_fits(checkpoint: Path, config: Config) -> None:
    """Refuse to go on from a checkpoint whose policy is another one than the config describes."""
    from atlas.policy import PolicyProcessor

    file = checkpoint / "policy" / "config.yaml"
    try:
        saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read ({error}); the checkpoint is damaged.") from None
    differing = _differences("model", saved, config.model.model_dump(mode="json"))
    processor = PolicyProcessor.load(checkpoint / "policy" / "processor.json")
    for key, was in (("image_size", processor.image_size), ("action_horizon", processor.action_horizon)):
        if getattr(config.data, key) != was:
            differing.append(f"data.{key} was {was} and is {getattr(config.data, key)}")
    if differing:
        raise InputError(f"The checkpoint {checkpoint} does not fit the config: {'; '.join(differing)}.")


def _differences(key: str, was: Any, now: Any) -> list[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        return [d for k in sorted({*was, *now}) for d in _differences(f"{key}.{k}", was.get(k), now.get(k))]
    return [] if was == now else [f"{key} was {was} and is {now}"]


def _check_data(config: Config, dataset: EpisodeDataset) -> None:
    from atlas.data.feature_cache import FeatureCache
    from atlas.data.split import split_episodes
    from atlas.rollout.worlds import environment_spec

    if not len(split_episodes(dataset.task_of, config.data.val_fraction, config.seed)[1]):
        raise InputError(f"{dataset.path} has one episode a task; validation needs a task with at least two.")
    longest = int(dataset.lengths.max())
    if config.data.action_horizon > longest:
        raise InputError(
            f"data.action_horizon is {config.data.action_horizon}, longer than every episode of {dataset.path} "
            f"(the longest has {longest} frames)."
        )
    if config.evaluation.env not in ("auto", "none"):
        environment_spec(config.evaluation.env)
    if config.data.feature_cache is not None:
        FeatureCache.read(Path(config.data.feature_cache)).check_complete()


def _run_dir(config: Config) -> Path:
    assert config.run_name is not None
    return Path(config.output_dir) / config.run_name


# ---- on every rank ---------------------------------------------------------------------------------------


def run(config: Config, checkpoint: Path | None = None) -> Result:
    """Train with a prepared config, as the only process or as one rank of several."""
    from atlas.tracking.console import setup_logging

    accelerator = make_accelerator(config)
    run_dir = _run_dir(config)
    undo_logging = setup_logging(run_dir, accelerator.is_main_process, accelerator.process_index)
    exit_code = 1
    trainer, closed_loop = None, None
    try:
        trainer = build_trainer(config, accelerator, checkpoint)
        closed_loop = trainer.closed_loop
        metrics = trainer.train()
        result = _finish(config, trainer, metrics)
        exit_code = 0
        return result
    except BaseException as error:
        exit_code = getattr(error, "exit_code", 1)
        raise
    finally:
        if closed_loop is not None:
            closed_loop.close()
        if trainer is not None:
            trainer.tracker.finish(exit_code)
        undo_logging()
        accelerator.end_training()


def build_trainer(config: Config, accelerator: Accelerator, checkpoint: Path | None = None) -> Trainer:
    """The dataset, the policy, the tracker and the trainer that a prepared config describes."""
    import torch

    from atlas.checks.inspection import dataset_warnings
    from atlas.data import open_configured
    from atlas.data.chunks import ChunkDataset
    from atlas.data.order import TrainOrder
    from atlas.data.split import split_episodes
    from atlas.policy import AtlasPolicy
    from atlas.tracking import RunTracker
    from atlas.training import Trainer
    from atlas.training.checkpoints import load_state
    from atlas.training.schedule import make_schedule

    dataset, cameras = open_configured(config.data)
    if accelerator.is_main_process:
        for warning in dataset_warnings(dataset):
            logger.warning("%s: %s", dataset.path, warning)
    chunks = [
        ChunkDataset(dataset, episodes, cameras, config.data.image_size, config.data.action_horizon, seed=config.seed)
        for episodes in split_episodes(dataset.task_of, config.data.val_fraction, config.seed)
    ]
    train_data, val_data = chunks
    torch.manual_seed(config.seed)  # the same weights on every rank
    if checkpoint is not None:
        policy = AtlasPolicy.from_pretrained(checkpoint)
    else:
        policy = _make_policy(config, dataset, train_data, cameras)
    if policy.alignment is not None:
        policy.alignment.hire()
    if config.data.feature_cache is not None:
        _use_features(config, dataset, cameras, policy, train_data, val_data)
    if "language" in policy.frozen:
        _share_embeddings(policy, dataset.tasks, _run_dir(config) / INSTRUCTIONS, accelerator, checkpoint is not None)
    torch.manual_seed(config.seed + 1 + accelerator.process_index)

    settings = config.training
    order = TrainOrder(
        len(train_data),
        config.seed,
        config.data.batch_size,
        settings.gradient_accumulation_steps,
        accelerator.num_processes,
    )
    schedule = make_schedule(config, settings.max_steps or order.steps_for(settings.num_epochs or 1))
    state = load_state(checkpoint) if checkpoint is not None else None
    run_dir = _run_dir(config)
    tracker = RunTracker(
        run_dir,
        str(config.run_name),
        config.wandb,
        config.logging,
        is_main=accelerator.is_main_process,
        resume_step=state.step if state else None,
        wandb_id=state.wandb_id if state else None,
        total_steps=schedule.max_steps,
    )
    trainer = Trainer(
        config,
        policy,
        train_data,
        val_data,
        run_dir,
        accelerator,
        tracker,
        schedule,
        _make_closed_loop(config, dataset, policy, accelerator),
        checkpoint,
    )
    _announce(config, trainer, dataset)
    return trainer


def _share_embeddings(
    policy: AtlasPolicy, instructions: Sequence[str], file: Path, accelerator: Accelerator, resumed: bool
) -> None:
    """Have a frozen language encoder read each instruction once in the life of a run, on one process."""
    from atlas.policy.huggingface_language import HuggingFaceLanguageEncoder

    encoder = policy.language
    assert isinstance(encoder, HuggingFaceLanguageEncoder)
    if accelerator.is_main_process:
        if resumed and file.exists():
            encoder.load_embeddings(file)
        encoder.embed(instructions)
        encoder.save_embeddings(file)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        encoder.load_embeddings(file)


def _use_features(
    config: Config,
    dataset: EpisodeDataset,
    cameras: Sequence[str],
    policy: AtlasPolicy,
    train_data: ChunkDataset,
    val_data: ChunkDataset,
) -> None:
    """Read a frozen encoder's features in place of images. Raises InputError where they are of something else."""
    from atlas.data.feature_cache import FeatureCache
    from atlas.policy.features import cache_source

    assert config.data.feature_cache is not None
    cache = FeatureCache.read(Path(config.data.feature_cache))
    versions = cache.layout.versions
    cache.check(cache_source(config, dataset, cameras, policy.frozen["vision"].sha256, versions))
    cache.check_complete()
    train_data.use_features(cache, augmented=True)
    val_data.use_features(cache, augmented=False)
    how = f"{versions - 1} augmented versions of each frame" if versions > 1 else "without augmentation"
    logger.info("Features of %s in place of images, %s", cache.folder, how)


def make_accelerator(config: Config) -> Accelerator:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    cpu = config.distributed.cpu or not torch.cuda.is_available()
    precision = config.training.precision
    bf16 = precision == "bf16" or (precision == "auto" and not cpu and torch.cuda.is_bf16_supported())
    return Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if bf16 else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def _make_policy(
    config: Config, dataset: EpisodeDataset, train_data: ChunkDataset, cameras: Sequence[str]
) -> AtlasPolicy:
    from atlas.policy import AtlasPolicy, PolicyProcessor

    processor = PolicyProcessor(
        cameras=tuple(cameras),
        camera_size=min(min(dataset.image_size(camera)) for camera in cameras),
        image_size=config.data.image_size,
        action_horizon=config.data.action_horizon,
        proprio_dim=dataset.proprio_dim,
        action_spec=dataset.action_spec,
        statistics=(train_data.statistics(),),
        scaling=config.model.processor,
    )
    return AtlasPolicy(config.model, processor)


def _make_closed_loop(config: Config, dataset: EpisodeDataset, policy: AtlasPolicy, accelerator: Accelerator) -> Any:
    """The closed-loop evaluation, or None where there is no world for the data or no episodes are asked for."""
    from atlas.rollout.evaluate import check_agreement
    from atlas.rollout.worlds import environment_spec
    from atlas.training.closed_loop import ClosedLoop

    env = dataset.environment if config.evaluation.env == "auto" else config.evaluation.env
    if env is None or env == "none" or config.evaluation.episodes == 0:
        reason = "evaluation.episodes is 0" if config.evaluation.episodes == 0 else "no simulator for this dataset"
        logger.info("No closed-loop evaluation: %s", reason)
        return None
    check_agreement(policy.processor, environment_spec(env))
    return ClosedLoop(config.evaluation, env, config.seed, accelerator)


def _announce(config: Config, trainer: Trainer, dataset: EpisodeDataset) -> None:
    """Say at the start what will run, and log it as the run's config."""
    policy = trainer.policy
    total = sum(p.numel() for p in policy.parameters())
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    trainer.tracker.log_config(config.model_dump(mode="json"))
    trainer.tracker.log(
        {
            "model/total_parameters": total,
            "model/trainable_parameters": trainable,
            "model/file_size_mb": sum(v.numel() * v.element_size() for v in policy.own_state_dict().values()) / 1e6,
        }
    )
    device, world = trainer.accelerator.device, trainer.accelerator.num_processes
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
    from atlas.policy import AtlasPolicy
    from atlas.training.summary import final_summary

    root = trainer.checkpoints.root
    link = root / "best" if (root / "best").exists() else root / "latest"
    best_checkpoint = root / link.resolve().name
    report = None
    if trainer.closed_loop is not None and config.evaluation.final_episodes:
        policy = AtlasPolicy.from_pretrained(best_checkpoint).to(trainer.accelerator.device)
        report = trainer.closed_loop.run(
            policy,
            "final",
            config.evaluation.final_episodes,
            str(best_checkpoint),
            config.evaluation.video,
            trainer.run_dir / "videos",
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
