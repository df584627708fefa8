"""`split`: no episode, or near copy of one, is both in training and in validation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding

_SAME = 0.1  # RMS difference, in deviations, of most numbers of two episodes that are nearly the same
_CANDIDATE = 0.6  # the same for a summary's numbers
_SHIFTS = 6  # frames by which one may begin later
_LENGTHS = 10  # frames by which their lengths may differ
_MOST_EPISODES = 5000  # compared with each other
_BLOCK = 1024
_SHOWN = 5

Pair = tuple[int, int]


def check_split(context: CheckContext) -> Iterator[Finding]:
    train, val = set(context.train.tolist()), set(context.val.tolist())
    shared = sorted(train & val)
    if shared:
        yield Finding(
            "split",
            "error",
            f"{len(shared)} episodes are both in training and in validation: {shared[:_SHOWN]}",
            "Give each episode to one side only; validation on trained episodes says nothing.",
            {"episodes": shared},
            fatal=True,
        )
    if not len(val):
        yield Finding(
            "split",
            "warning",
            "no episode is left for validation: each task has only one",
            "Add episodes; a task with two or more gives one to validation.",
            {"train": len(train), "val": 0},
        )
    else:
        tasks = context.dataset.task_of
        alone = np.flatnonzero(np.bincount(tasks) == 1)
        if len(alone):
            yield Finding(
                "split",
                "warning",
                f"{len(alone)} of {len(context.dataset.tasks)} tasks have only one episode, which is trained on: "
                "they are not validated",
                "Add episodes; a task with two or more gives one to validation.",
                {"tasks": [context.dataset.tasks[task] for task in alone[:_SHOWN].tolist()]},
            )
    pairs = near_duplicates(context)
    leaking = [pair for pair in pairs if len(train & set(pair)) == 1 and len(val & set(pair)) == 1]
    if pairs:
        shown = ", ".join(f"{a} and {b}" for a, b in (leaking or pairs)[:_SHOWN])
        where = f"{len(leaking)} of them on both sides of the split" if leaking else "and another seed may split them"
        yield Finding(
            "split",
            "error",
            f"{len(pairs)} pairs of episodes are the same or nearly so, {where}: {shown}",
            "Leave one of each pair out: validation on what was trained on says nothing.",
            {"pairs": [list(pair) for pair in pairs[:100]], "count": len(pairs), "on_both_sides": len(leaking)},
        )
    if not shared and not pairs:
        yield Finding(
            "split",
            "info",
            f"{len(train)} episodes for training and {len(val)} for validation, none of them nearly another",
            None,
            {"train": len(train), "val": len(val)},
        )


def near_duplicates(context: CheckContext) -> list[Pair]:
    """Pairs of episodes whose actions and proprio are the same up to a little noise and some frames at either end."""
    dataset = context.dataset
    numbers = context.sample(_MOST_EPISODES)
    summaries = _standardised(np.stack([_summary(context, i) for i in numbers]))
    lengths = dataset.lengths[numbers]
    scale = _deviation(context)
    found = []
    for start in range(0, len(numbers), _BLOCK):
        block = summaries[start : start + _BLOCK]
        squared = (block**2).sum(1)[:, None] + (summaries**2).sum(1)[None] - 2 * block @ summaries.T
        near = squared < _CANDIDATE**2 * summaries.shape[1]
        near &= np.abs(lengths[start : start + _BLOCK, None] - lengths[None]) <= _LENGTHS
        for i, j in zip(*np.nonzero(near), strict=True):
            if start + i < j and _same(context, numbers[start + i], numbers[j], scale):
                found.append((numbers[start + i], numbers[j]))
    return found


def _numbers(context: CheckContext, index: int) -> np.ndarray:
    """[T, A + P]"""
    episode = context.dataset.episode(index)
    both = np.concatenate([episode.actions, episode.proprio], axis=1).astype(np.float64)
    return np.nan_to_num(both, posinf=0.0, neginf=0.0)


def _summary(context: CheckContext, index: int) -> np.ndarray:
    """Means of the quarters of an episode, which hardly change with a few frames more or less."""
    numbers = _numbers(context, index)
    edges = np.linspace(0, len(numbers), 5).astype(int)
    quarters = [numbers[min(a, len(numbers) - 1) : max(b, a + 1)] for a, b in itertools.pairwise(edges)]
    return np.concatenate([quarter.mean(0) for quarter in quarters])


def _standardised(values: np.ndarray) -> np.ndarray:
    deviation = values.std(0)
    return (values - values.mean(0)) / np.where(deviation > 1e-9, deviation, 1.0)


def _deviation(context: CheckContext) -> np.ndarray:
    values = np.concatenate([np.concatenate(pair, axis=1) for pair in context.sampled])
    deviation = np.nan_to_num(values).std(0)
    return np.where(deviation > 1e-6, deviation, np.inf)  # what never varies tells nothing


def _same(context: CheckContext, first: int, second: int, scale: np.ndarray) -> bool:
    """Whether two episodes are nearly the same when one is shifted by a few frames against the other."""
    varying = np.isfinite(scale)
    a, b = (_numbers(context, index)[:, varying] / scale[varying] for index in (first, second))
    for shift in range(-_SHIFTS, _SHIFTS + 1):
        x, y = a[max(0, shift) :], b[max(0, -shift) :]
        overlap = min(len(x), len(y))
        if overlap < max(2, min(len(a), len(b)) // 2):
            continue
        if np.median(np.sqrt(((x[:overlap] - y[:overlap]) ** 2).mean(0))) < _SAME:
            return True
    return False
