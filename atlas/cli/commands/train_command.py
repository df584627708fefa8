"""`atlas train`, what it starts on every rank, and `atlas config`: the settings it takes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas.cli.options import PLAIN, ConfigFile, Json, Overrides, Resume, SkipDamaged, as_overrides
from atlas.cli.output import print_json

if TYPE_CHECKING:
    from atlas.config import Config


config_app = typer.Typer(help="Show the configuration.", **PLAIN)


class Mode(str, Enum):
    """The values of `--mode`."""

    single = "single"
    multi = "multi"


def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    mode: Annotated[Mode | None, typer.Option(help="One process, or several; default: all visible GPUs.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; with --cpu, CPU processes.")] = None,
    gpu_ids: Annotated[str | None, typer.Option(metavar="0,2", help="Which of the visible GPUs.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False,
    num_nodes: Annotated[int | None, typer.Option(min=1, metavar="N", help="Machines; default: SLURM's, or 1.")] = None,
    node_rank: Annotated[int | None, typer.Option(min=0, metavar="R", help="Which of them this is, from 0.")] = None,
    master_addr: Annotated[str | None, typer.Option(metavar="HOST", help="The address of machine 0.")] = None,
    master_port: Annotated[
        int | None, typer.Option(min=1024, max=65535, metavar="PORT", help="A free port there.")
    ] = None,
    resume: Resume = None,
    skip_damaged: SkipDamaged = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Also log to Weights & Biases.")] = False,
    wandb_project: Annotated[str | None, typer.Option(metavar="P", help="Its project.")] = None,
    wandb_entity: Annotated[str | None, typer.Option(metavar="E", help="Its user or team.")] = None,
    wandb_name: Annotated[str | None, typer.Option(metavar="N", help="The run's name there.")] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="A few steps, to check that everything runs; no wandb.")
    ] = False,
) -> None:
    """Train a policy."""
    # If another process is gone, torch prints C++ stacks before it raises the error that says so.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    flags = {
        "distributed.mode": mode.value if mode else None,
        "distributed.gpus": gpus,
        "distributed.gpu_ids": _gpu_ids(gpu_ids),
        "distributed.cpu": cpu or None,
        "distributed.num_nodes": num_nodes,
        "distributed.node_rank": node_rank,
        "distributed.master_addr": master_addr,
        "distributed.master_port": master_port,
        "data.skip_damaged": skip_damaged or None,
        "wandb.enabled": wandb or None,
        "wandb.project": wandb_project,
        "wandb.entity": wandb_entity,
        "wandb.name": wandb_name,
    }
    given = [*(overrides or []), *as_overrides(flags)]
    from atlas.launch import (
        count_gpus,
        die_with_launcher,
        is_rank,
        launch_ranks,
        plan_nodes,
        plan_processes,
        settle_device,
    )
    from atlas.prepare import prepare, prepare_once
    from atlas.train import run

    if is_rank():  # started by a plain torchrun, or on one of several machines
        die_with_launcher()
        with ExitStack() as locks:
            run(prepare_once(lambda: prepare(_resolve(config, given, resume, debug), resume, locks)))
        return
    resolved = _resolve(config, given, resume, debug)
    nodes = plan_nodes(resolved.distributed, os.environ)
    plan = plan_processes(resolved.distributed, count_gpus(resolved.distributed))
    os.environ.update(plan.visible(os.environ))  # before anything asks CUDA, which reads it once
    settle_device(resolved.distributed)
    if nodes.number > 1:  # one of their ranks prepares the run
        named = [*(["--config", config] if config else []), *(["--resume", resume] if resume else [])]
        arguments = ["train", *given, *named, *(["--debug"] if debug else [])]
        raise typer.Exit(launch_ranks(arguments, plan, nodes=nodes))
    with ExitStack() as locks:
        # Everything that can be wrong is found here, once, before there are several processes.
        prepared = prepare(resolved, resume, locks)
        if plan.processes == 1:
            os.environ.update(plan.environment(os.environ))
            run(prepared)
            return
        arguments = ["rank", str(prepared.run_dir)]
        arguments += ["--resume", str(prepared.checkpoint)] if prepared.checkpoint else []
        del prepared  # each rank opens the data itself
        raise typer.Exit(launch_ranks(arguments, plan))


def _resolve(config: str | None, overrides: list[str], resume: str | None, debug: bool) -> Config:
    from atlas.config import load_config
    from atlas.train import load_run_config

    resolved = load_run_config(config, overrides, resume)
    return load_config(resolved, _debug_overrides(resolved)) if debug else resolved


def rank(run_dir: Path, resume: Annotated[Path | None, typer.Option(metavar="CHECKPOINT")] = None) -> None:
    """One of several training processes; started by `atlas train`."""
    from atlas.launch import die_with_launcher

    die_with_launcher()
    from atlas.config import load_config
    from atlas.system.file_store import CONFIG
    from atlas.train import run
    from atlas.training.prepared_run import PreparedRun

    run(PreparedRun(load_config(run_dir / CONFIG), resume))


def _gpu_ids(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"'{text}' should be numbers such as 0,2.", param_hint="'--gpu-ids'") from None


def _debug_overrides(config: Config) -> list[str]:
    """The changes for `--debug`: what takes time becomes small, and nothing becomes larger."""
    steps, episodes = 5, 2
    smaller = {
        "training.max_steps": (config.training.max_steps or steps, steps),
        "training.warmup_steps": (config.training.warmup_steps, 1),
        "training.log_interval": (config.training.log_interval, 1),
        "training.val_interval": (config.training.val_interval, steps),
        "checkpoint.save_interval": (config.checkpoint.save_interval, steps),
        "evaluation.interval": (config.evaluation.interval, steps),
        "evaluation.episodes": (config.evaluation.episodes, episodes),
        "evaluation.final_episodes": (config.evaluation.final_episodes, episodes),
        "evaluation.video": (config.evaluation.video, episodes),
        "evaluation.probe_episodes": (config.evaluation.probe_episodes, episodes),
        "evaluation.perturbation_episodes": (config.evaluation.perturbation_episodes, episodes),
    }
    numbers = [f"{key}={min(now, limit)}" for key, (now, limit) in smaller.items()]
    return [*numbers, "training.num_epochs=null", "wandb.enabled=false"]


@config_app.command("schema")
def schema() -> None:
    """Print the config file's JSON schema, for editors."""
    from atlas.config import config_schema

    print_json(config_schema())


@config_app.command("show")
def show(overrides: Overrides = None, config: ConfigFile = None, as_json: Json = False) -> None:
    """Print the whole config, with defaults and overrides."""
    from atlas.config import dump_yaml, load_config

    resolved = load_config(config, overrides or [])
    if as_json:
        print_json(resolved.model_dump(mode="json"))
    else:
        print(dump_yaml(resolved), end="")
