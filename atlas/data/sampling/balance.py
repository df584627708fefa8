"""The number of times that an epoch draws each sample, as `data.balance` says."""

from __future__ import annotations

import logging

import numpy as np

from atlas.config import DataConfig
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.sampling.order import Draws

logger = logging.getLogger(__name__)


def balanced_draws(data: ChunkDataset, config: DataConfig) -> Draws:
    """The samples of an epoch: each source's or task's share; in all as many as there are samples.

    Raises InputError if a share is less than one sample.
    """
    sources = data.sources
    if config.balance == "task":
        of, names = data.task_of, [f"The task '{task}'" for task in data.tasks]
        shares = [1.0] * len(names)
    elif config.balance == "samples" or len(sources) == 1:
        return Draws.each_once(len(data))
    else:
        of, names = data.source_of, [f"The dataset '{source.name}'" for source in sources]
        shares = [source.weight for source in sources]  # all 1 if datasets are balanced
    present = np.unique(of).tolist()  # a task's episodes may all be for validation
    groups = [np.flatnonzero(of == number) for number in present]
    return Draws.by_shares(groups, [shares[i] for i in present], [names[i] for i in present])


def describe_draws(data: ChunkDataset, draws: Draws) -> str:
    """Describe how much of each source an epoch draws, for the log."""
    drawn = np.zeros(len(data.sources))
    for samples, count in zip(draws.groups, draws.counts, strict=True):
        in_group = np.bincount(data.source_of[samples], minlength=len(drawn))
        drawn += in_group * (count / len(samples))
    there = np.bincount(data.source_of, minlength=len(drawn))
    return ", ".join(
        f"{100 * part / len(draws):.0f}% of '{source.name}' (its samples {part / max(count, 1):.2g} times)"
        for source, part, count in zip(data.sources, drawn, there, strict=True)
    )
