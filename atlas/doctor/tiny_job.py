"""A tiny job that shows whether training works: `python -m atlas.doctor.tiny_job FILE`.

It uses made-up demonstrations in LIBERO's layout, so that it needs no simulator.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from atlas.data.episode import RecordedEpisode
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.doctor.child import answer

_STEPS = 2
_EPISODES, _FRAMES, _PIXELS = 3, 12, 32


def run_tiny_job(folder: Path) -> dict[str, Any]:
    """Write data into `folder`, train on it there, and load the saved policy."""
    from atlas.policies.base import load_policy
    from atlas.train import train

    rng = np.random.default_rng(0)
    for task in ("first", "second"):
        episodes = [_episode(rng, task) for _ in range(_EPISODES)]
        write_libero_file(folder / "data" / f"{task}_demo.hdf5", task, episodes, {"env_name": "made up"})
    overrides = [
        f"data.path={folder / 'data'}",
        f"output_dir={folder / 'outputs'}",
        "run_name=tiny",
        f"data.image_size={_PIXELS}",
        "data.batch_size=8",
        "model.vision={name: keypoints, width: 8, keypoints: 8}",
        "model.fusion.dim=32",
        "model.fusion.layers=1",
        f"training.max_steps={_STEPS}",
        "training.log_interval=1",
        "training.warmup_steps=1",
        f"training.val_interval={_STEPS}",
        f"checkpoint.save_interval={_STEPS}",
        "evaluation.env=none",
        "wandb.enabled=false",
        *(f"logging.media.{kind}.interval=0" for kind in ("gradient_logger", "plot_logger", "action_logger")),
        "logging.media.vis_dataset.interval=0",
    ]
    result = train(None, overrides)
    loss = result.metrics["train/loss"]
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss}")
    load_policy(result.best_checkpoint)
    return {"steps": _STEPS, "loss": loss, "device": _device()}


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"


def _episode(rng: np.random.Generator, instruction: str) -> RecordedEpisode:
    actions = rng.uniform(-1, 1, (_FRAMES, 7))
    actions[:, 6] = np.where(np.arange(_FRAMES) < _FRAMES // 2, -1.0, 1.0)
    return RecordedEpisode(
        instruction=instruction,
        images={"agentview": rng.integers(0, 255, (_FRAMES, _PIXELS, _PIXELS, 3), dtype=np.uint8)},
        proprio=rng.normal(size=(_FRAMES, 8)).astype(np.float32),
        joints=rng.normal(size=(_FRAMES, 7)),
        actions=actions,
        rewards=np.zeros(_FRAMES, np.float32),
        sim_states=rng.normal(size=(_FRAMES, 5)),
        model_xml="<mujoco/>",
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="atlas-doctor-job-") as temporary:
        answer(sys.argv[1], lambda: run_tiny_job(Path(temporary)))
