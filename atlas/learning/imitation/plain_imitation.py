"""Training by imitation inside a run of learning: for a round, or for the control, on demonstrations only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from atlas.config import Config, DataConfig
from atlas.launch import count_gpus, launch_ranks, plan_processes
from atlas.prepare import prepare
from atlas.runs.run_directory import RESULTS
from atlas.system.documents import read_json
from atlas.train import run


def imitate(
    config: Config,
    folder: Path,
    start: Path,
    steps: int,
    data: DataConfig | None = None,
    seed: int | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Train the policy `start` for this many steps, as a run of its own in `folder`; return the best checkpoint. A
    finished run is not trained again, and one that was stopped is resumed.

    data, seed, training: replace the config's; `training` gives single keys. Raises InputError.
    """
    if (folder / RESULTS).exists():
        return Path(read_json(folder / RESULTS)["best_checkpoint"])
    changed = {"start_from": str(start), "max_steps": steps, "num_epochs": None, "val_interval": steps}
    update = {
        "output_dir": str(folder.parent),
        "run_name": folder.name,
        "seed": config.seed if seed is None else seed,
        "data": data or config.data,
        "training": config.training.model_copy(update={**changed, **(training or {})}),
        "evaluation": config.evaluation.model_copy(update={"episodes": 0, "final_episodes": 0}),
        "checkpoint": config.checkpoint.model_copy(update={"save_interval": steps}),
        "wandb": config.wandb.model_copy(update={"enabled": False}),
    }
    return train_here_or_in_ranks(config.model_copy(update=update))


def train_here_or_in_ranks(config: Config) -> Path:
    """Train a run as `atlas train` does, on the devices of its `distributed` section; return its best checkpoint."""
    plan = plan_processes(config.distributed, count_gpus(config.distributed))
    with ExitStack() as locks:
        prepared = prepare(config, "auto", locks)  # it may have been stopped
        if plan.processes == 1:
            os.environ.update(plan.environment(os.environ))
            return run(prepared).best_checkpoint
        del prepared  # each rank opens the data itself
        code = launch_ranks(["rank", str(config.run_dir)], plan)
    if code:
        raise RuntimeError(f"The training {config.run_dir} ended with exit code {code}; its log says why.")
    return Path(read_json(config.run_dir / RESULTS)["best_checkpoint"])
