"""A first look at a dataset: what is in it, what looks wrong, and what training refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlas.checks.context import CheckContext
from atlas.checks.data_check import Check, run_checks
from atlas.checks.finding import CheckId, Finding
from atlas.checks.language import check_instructions
from atlas.checks.numbers import check_actions, check_rotations
from atlas.checks.recording_agreement import check_gripper, check_lag, check_scale
from atlas.checks.split_check import check_split
from atlas.checks.stats import check_stats
from atlas.config.model_section import ProcessorConfig
from atlas.data.episode import EpisodeDataset, tasks_of
from atlas.data.lerobot.dataset import LeRobotDataset
from atlas.data.mixture import Source, sources_of
from atlas.data.proprio import proprio_names
from atlas.errors import InputError

# The checks that read no pictures and need no simulator.
_NUMBERS: tuple[tuple[CheckId, Check], ...] = (
    ("language", check_instructions),
    ("actions", check_actions),
    ("actions", check_rotations),
    ("gripper", check_gripper),
    ("lag", check_lag),
    ("scale", check_scale),
)
_BEFORE_TRAINING: tuple[tuple[CheckId, Check], ...] = (*_NUMBERS, ("split", check_split), ("stats", check_stats))


def inspect_dataset(dataset: EpisodeDataset) -> dict[str, Any]:
    """Return what `atlas data inspect --json` prints. Raises InputError for images that do not have the stated size."""
    actions = dataset.numbers().actions
    if isinstance(dataset, LeRobotDataset):
        dataset.check_sizes()
    return {
        "format": dataset.format,
        "episodes": len(dataset),
        "frames": int(dataset.lengths.sum()),
        "fps": dataset.fps,
        "tasks": _episodes_of_tasks(dataset),
        "cameras": {camera: list(dataset.image_size(camera)) for camera in dataset.cameras},
        "action_dim": dataset.action_spec.dim,
        "action_spec": dataset.action_spec.to_dict(),
        "proprio_dim": dataset.proprio_dim,
        "proprio_names": [name for name, _ in proprio_names(dataset)],
        "read_as": reading_notes(dataset),
        "action_min": actions.min(0).tolist(),
        "action_max": actions.max(0).tolist(),
        "warnings": dataset_warnings(dataset),
    }


def _episodes_of_tasks(dataset: EpisodeDataset) -> dict[str, int]:
    """{instruction: the episodes that have it, at some frame at least}"""
    count = np.bincount([t for i in range(len(dataset)) for t in tasks_of(dataset, i)], minlength=len(dataset.tasks))
    return {task: int(n) for task, n in zip(dataset.tasks, count, strict=True)}


def reading_notes(dataset: EpisodeDataset) -> list[str]:
    """Say what was taken for what: each group of the actions, and how it was told if the dataset did not say it."""
    told = dataset.notes if isinstance(dataset, LeRobotDataset) else []
    return [*(group.describe() for group in dataset.action_spec.groups), *told]


def dataset_warnings(dataset: EpisodeDataset) -> list[str]:
    """Describe what looks wrong in a dataset's numbers and instructions, in sentences; none when nothing does."""
    everything = np.arange(len(dataset))
    context = CheckContext(dataset, list(dataset.cameras), everything, everything[:0])
    return [_sentence(finding) for finding in run_checks(context, _NUMBERS) if finding.severity != "info"]


def check_before_training(
    dataset: EpisodeDataset, train: np.ndarray, val: np.ndarray, processor: ProcessorConfig
) -> list[tuple[Path, Finding]]:
    """The checks that read no pictures, for each source of a mixture: what they found, and of which dataset.

    train, val: int64, the episodes on both sides of the split; processor: how training scales numbers. Raises
    InputError for what cannot be trained on: non-finite numbers, actions that never change, an episode on both sides.
    """
    return [found for source in sources_of(dataset) for found in _check_source(source, train, val, processor)]


def sentences(found: Sequence[tuple[Path, Finding]]) -> list[str]:
    """Describe what looks wrong in datasets, for people."""
    return [f"{path}: {_sentence(finding)}" for path, finding in found if finding.severity != "info"]


def _check_source(
    source: Source, train: np.ndarray, val: np.ndarray, processor: ProcessorConfig
) -> list[tuple[Path, Finding]]:
    dataset = source.dataset
    sides = [
        side[(side >= source.first) & (side < source.first + len(dataset))] - source.first for side in (train, val)
    ]
    context = CheckContext(dataset, list(dataset.cameras), sides[0], sides[1], processor=processor)
    findings = run_checks(context, _BEFORE_TRAINING)
    for finding in findings:
        if finding.fatal:
            raise InputError(f"{dataset.path} cannot be trained on: {_sentence(finding)} {finding.fix}")
    return [(Path(dataset.path), finding) for finding in findings]


def _sentence(finding: Finding) -> str:
    return f"{finding.message}." if finding.fatal else finding.message
