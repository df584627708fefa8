"""Run folders written by the tracker itself, with the evaluation files that a rollout would leave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from atlas.config import dump_yaml, load_config
from atlas.rollout.proportions import wilson_interval

Curves = Mapping[str, Sequence[tuple[int, float]]]


def write_run(folder: Path, *overrides: str, curves: Curves | None = None) -> Path:
    """A run's folder with its config and its TensorBoard files."""
    folder.mkdir(parents=True)
    config = load_config(None, [f"run_name={folder.name}", f"output_dir={folder.parent}", *overrides])
    (folder / "config.yaml").write_text(dump_yaml(config))
    log_curves(folder, curves or {"train/loss": [(10, 0.5)], "val/loss": [(10, 0.6)]})
    return folder


def log_curves(folder: Path, curves: Curves, resume_step: int | None = None) -> None:
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step)
    for tag, points in curves.items():
        for step, value in points:
            writer.add_scalar(tag, value, step)
    writer.close()


def write_evaluation(
    folder: Path,
    outcomes: Sequence[bool],
    purpose: str = "final",
    step: int | None = 10,
    first_seed: int = 0,
    **changed: Any,
) -> Path:
    """The file that an evaluation of these episodes leaves in a run's folder."""
    successes, episodes = sum(outcomes), len(outcomes)
    values = {
        "env": "cubes",
        "checkpoint": "somewhere",
        "episodes": episodes,
        "successes": successes,
        "success_rate": successes / episodes,
        "ci95": list(wilson_interval(successes, episodes)),
        "purpose": purpose,
        "step": step,
        "seed": 0,
        "probes": [],
        "outcomes": [
            {"seed": first_seed + i, "instruction": "lift", "success": success, "reward": 0.0, "length": 50}
            for i, success in enumerate(outcomes)
        ],
    }
    file = folder / "evaluations" / f"{purpose}_step_{step or 0:08d}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values | changed))
    return file
