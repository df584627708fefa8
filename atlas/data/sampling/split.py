"""Training and validation episodes: whole episodes, every task on both sides."""

from __future__ import annotations

import numpy as np

from atlas.data.episode import EpisodeDataset, Side
from atlas.data.mixture import sources_of
from atlas.data.sampling.kept_split import KeptSplit, episode_identities


def split_dataset(
    dataset: EpisodeDataset, val_fraction: float, seed: int, kept: KeptSplit | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Episode numbers for training and for validation, each sorted. Every source of a mixture is split as it would be
    alone, or as it says itself. kept: the split of a resumed run, whose episodes keep their sides."""
    had = None if kept is None else kept.sides(episode_identities(dataset))
    train, val = [], []
    for source in sources_of(dataset):
        task_of, said = source.dataset.task_of, source.dataset.sides
        if had is None:
            mine = split_episodes(task_of, val_fraction, seed, said)
        else:
            mine = deal_new(task_of, val_fraction, seed, had[source.first : source.first + len(task_of)], said)
        train.append(source.first + mine[0])
        val.append(source.first + mine[1])
    return np.concatenate(train), np.concatenate(val)


def split_episodes(
    task_of: np.ndarray, val_fraction: float, seed: int, sides: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Episode numbers for training and for validation, each sorted; a pure function of the arguments.

    task_of: int64 [episodes]. sides: as `EpisodeDataset.sides`. Of each task's episodes that the dataset does not
    assign, `val_fraction` (rounded) are for validation: at least one if there are two or more, and never all.
    """
    sides = np.full(len(task_of), Side.UNSAID) if sides is None else sides
    validation: list[int] = np.flatnonzero(sides == Side.VALIDATION).tolist()
    for task in np.unique(task_of):
        episodes = np.flatnonzero((task_of == task) & (sides == Side.UNSAID))
        if len(episodes) < 2:
            continue
        count = min(max(1, round(len(episodes) * val_fraction)), len(episodes) - 1)
        rng = np.random.default_rng([seed, int(task)])
        validation += rng.permutation(episodes)[:count].tolist()
    return _both_sides(task_of, validation)


def deal_new(
    task_of: np.ndarray, val_fraction: float, seed: int, had: np.ndarray, said: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Like `split_episodes`, if some episodes already have their side: `had`, int8 [episodes], a `Side` each.

    A task's new episodes fill its validation set up to the size that `split_episodes` would give it, if they suffice.
    """
    sides = np.where((had == Side.UNSAID) & (said is not None), Side.UNSAID if said is None else said, had)
    validation: list[int] = np.flatnonzero(sides == Side.VALIDATION).tolist()
    for task in np.unique(task_of):
        mine = task_of == task
        new = np.flatnonzero(mine & (sides == Side.UNSAID))
        wanted = min(max(1, round(mine.sum() * val_fraction)), mine.sum() - 1)
        lacking = wanted - (mine & (sides == Side.VALIDATION)).sum()
        order = np.random.default_rng([seed, int(task)]).permutation(new)
        validation += order[: max(0, lacking)].tolist()
    return _both_sides(task_of, validation)


def _both_sides(task_of: np.ndarray, validation: list[int]) -> tuple[np.ndarray, np.ndarray]:
    val = np.array(sorted(validation), np.int64)
    return np.setdiff1d(np.arange(len(task_of)), val), val
