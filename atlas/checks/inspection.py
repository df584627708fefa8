"""A first look at a dataset: what is in it, and what looks wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from atlas.data import open_dataset
from atlas.data.episode import EpisodeDataset

_STILL = 1e-6


def inspect_dataset(path: str | Path) -> dict[str, Any]:
    """What `atlas data inspect --json` prints."""
    dataset = open_dataset(path)
    actions = _all_actions(dataset)
    return {
        "format": dataset.format,
        "episodes": len(dataset),
        "frames": int(dataset.lengths.sum()),
        "fps": dataset.fps,
        "tasks": {task: int((dataset.task_of == i).sum()) for i, task in enumerate(dataset.tasks)},
        "cameras": {camera: list(dataset.image_size(camera)) for camera in dataset.cameras},
        "action_dim": dataset.action_spec.dim,
        "proprio_dim": dataset.proprio_dim,
        "action_min": actions.min(0).tolist(),
        "action_max": actions.max(0).tolist(),
        "warnings": _warnings(dataset, actions),
    }


def dataset_warnings(dataset: EpisodeDataset) -> list[str]:
    """What looks wrong in a dataset, in sentences; empty when nothing does."""
    return _warnings(dataset, _all_actions(dataset))


def _all_actions(dataset: EpisodeDataset) -> np.ndarray:
    return np.concatenate([dataset.episode(i).actions for i in range(len(dataset))])


def _warnings(dataset: EpisodeDataset, actions: np.ndarray) -> list[str]:
    spec = dataset.action_spec
    found = []
    if len(dataset.tasks) == 1:
        found.append(f"there is one instruction only ('{dataset.tasks[0]}'): a policy cannot learn to listen to it")
    if any(not task.strip() for task in dataset.tasks):
        found.append("an instruction is empty")
    if not np.isfinite(actions).all():
        found.append("actions hold values that are not finite")
        return found
    constant = [name for i, name in enumerate(spec.names) if np.ptp(actions[:, i]) < _STILL]
    if constant:
        found.append(f"the action dimensions {constant} never change")
    gripper = actions[:, spec.gripper]
    if not np.isin(np.round(gripper, 6), (-1.0, 1.0)).all():
        found.append(
            f"the gripper action is not -1 (open) or +1 (close) everywhere: it is within "
            f"[{gripper.min():g}, {gripper.max():g}]"
        )
    outside = float((np.abs(actions[:, spec.pose]) > 1 + 1e-3).mean())
    if outside:
        found.append(f"{outside:.1%} of the pose actions lie outside of [-1, 1], where the controller clips them")
    return found
