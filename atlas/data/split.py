"""Training and validation episodes: whole episodes, every task on both sides."""

from __future__ import annotations

import numpy as np

from atlas.data.episode import EpisodeDataset
from atlas.data.mixture import sources_of


def split_dataset(dataset: EpisodeDataset, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Episode numbers for training and for validation, each sorted: every source of a mixture is split as it would be
    alone."""
    train, val = [], []
    for source in sources_of(dataset):
        mine = split_episodes(source.dataset.task_of, val_fraction, seed)
        train.append(source.first + mine[0])
        val.append(source.first + mine[1])
    return np.concatenate(train), np.concatenate(val)


def split_episodes(task_of: np.ndarray, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Episode numbers for training and for validation, each sorted; a pure function of the arguments.

    task_of: int64 [episodes]. Of each task, `val_fraction` of its episodes (rounded) are for validation: at least
    one where the task has two or more, and never all of them.
    """
    validation: list[int] = []
    for task in np.unique(task_of):
        episodes = np.flatnonzero(task_of == task)
        if len(episodes) < 2:
            continue
        count = min(max(1, round(len(episodes) * val_fraction)), len(episodes) - 1)
        rng = np.random.default_rng([seed, int(task)])
        validation += rng.permutation(episodes)[:count].tolist()
    val = np.array(sorted(validation), np.int64)
    return np.setdiff1d(np.arange(len(task_of)), val), val
