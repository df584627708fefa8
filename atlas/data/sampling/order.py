"""The order in which training sees its samples: one global order, a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from atlas.errors import InputError

_WHICH_GROUP = 1  # makes the order of groups independent of the orders within them


@lru_cache(maxsize=16)
def epoch_order(samples: int, seed: int, epoch: int, group: int = 0) -> np.ndarray:
    """A permutation of 0 … samples-1, int64."""
    return np.random.default_rng([seed, epoch, group]).permutation(samples)


class Draws:
    """The number of samples that an epoch draws from each group of samples, and their order.

    Each group is repeated in a new order each time, continuing where the last epoch left it: none of its samples comes
    again before all others have come. The order of groups is shuffled over the epoch.
    """

    def __init__(self, groups: Sequence[np.ndarray], counts: Sequence[int]) -> None:
        """groups: the samples of each, int64 [n]. counts: how many samples an epoch draws from each."""
        assert len(groups) == len(counts) >= 1 and all(len(g) for g in groups) and min(counts) >= 1
        self.groups, self.counts = tuple(groups), tuple(counts)

    @classmethod
    def each_once(cls, samples: int) -> Draws:
        """Every one of 0 … samples-1 once per epoch."""
        return cls([np.arange(samples)], [samples])

    @classmethod
    def by_shares(cls, groups: Sequence[np.ndarray], shares: Sequence[float], names: Sequence[str]) -> Draws:
        """Each group's share of an epoch, which draws as many samples as all groups have.

        names: the groups', for messages. Raises InputError if a share is less than one sample.
        """
        total = sum(len(group) for group in groups)
        exact = np.asarray(shares, np.float64) / sum(shares) * total
        counts = np.floor(exact).astype(np.int64)
        # The rest from rounding goes to the groups that lost most by it.
        counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
        for name, count, share in zip(names, counts, shares, strict=True):
            if not count:
                raise InputError(
                    f"{name} has {share / sum(shares):.2g} of the samples, less than one of the {total} in an epoch; "
                    "give it a larger weight, or leave it out."
                )
        return cls(groups, counts.tolist())

    def __len__(self) -> int:
        """The number of samples per epoch."""
        return sum(self.counts)

    def epoch(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of an epoch in order, and how often each has come before: both int64 [len]."""
        if len(self.groups) == 1 and len(self.groups[0]) == len(self):
            return self.groups[0][epoch_order(len(self), seed, epoch)], np.full(len(self), epoch)
        group_of = np.repeat(np.arange(len(self.groups)), self.counts)
        group_of = group_of[np.random.default_rng([seed, epoch, 0, _WHICH_GROUP]).permutation(len(self))]
        samples, passes = np.empty(len(self), np.int64), np.empty(len(self), np.int64)
        for number, (group, count) in enumerate(zip(self.groups, self.counts, strict=True)):
            passed, place = np.divmod(epoch * count + np.arange(count), len(group))
            orders = {p: epoch_order(len(group), seed, p, number) for p in np.unique(passed).tolist()}
            here = np.flatnonzero(group_of == number)
            passes[here] = passed
            for p, order in orders.items():
                samples[here[passed == p]] = group[order[place[passed == p]]]
        return samples, passes


class TrainOrder:
    """An endless stream of samples, epoch after epoch, distributed to the processes in batches.

    Without groups each sample comes exactly once per epoch; a batch may span two epochs, so none is short. One process
    with batch 32 and two with batch 16 see the same samples at the same step.
    A sample is (how often it has come before, its index): no such pair comes twice.
    """

    def __init__(
        self,
        samples: int | Draws,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        """samples: their number, if an epoch draws each once; otherwise what it draws.
        start: a step and the samples seen by then, from where a resumed run with other batches continues."""
        self._draws = samples if isinstance(samples, Draws) else Draws.each_once(samples)
        self._samples, self._seed, self._start = len(self._draws), seed, start
        self.batch_size, self._accumulation, self._world = batch_size, accumulation, world_size
        self.samples_a_step = batch_size * accumulation * world_size
        self._epoch = lru_cache(maxsize=2)(self._draws.epoch)

    def steps_for(self, epochs: int) -> int:
        """The optimizer steps that this many epochs take."""
        first_step, seen = self._start
        return first_step + max(0, -(-(self._samples * epochs - seen) // self.samples_a_step))

    def epoch_at(self, step: int) -> float:
        """The epochs completed after `step` optimizer steps."""
        return self.samples_seen(step) / self._samples

    def samples_seen(self, step: int) -> int:
        """The samples that all processes together have seen after `step` optimizer steps."""
        first_step, seen = self._start
        return seen + (step - first_step) * self.samples_a_step

    def step_samples(self, step: int) -> np.ndarray:
        """(time, index) of all processes' samples at one optimizer step (from 0): int64 [samples per step, 2]."""
        return self._samples_from(self.samples_seen(step), self.samples_a_step)

    def batches(self, rank: int, first_step: int, last_step: int) -> Iterator[list[tuple[int, int]]]:
        """One process's batches for the steps [first_step, last_step), `accumulation` per step."""
        for step in range(first_step, last_step):
            for part in range(self._accumulation):
                start = self.samples_seen(step) + (part * self._world + rank) * self.batch_size
                yield [(time, index) for time, index in self._samples_from(start, self.batch_size).tolist()]

    def rank_samples(self, rank: int, step: int) -> list[int]:
        """The indices of one process's samples at one optimizer step."""
        return [index for batch in self.batches(rank, step, step + 1) for _, index in batch]

    def _samples_from(self, position: int, count: int) -> np.ndarray:
        """(time, index) of `count` samples from a position in the stream: int64 [count, 2]."""
        found = np.empty((count, 2), np.int64)
        done = 0
        while done < count:
            epoch, place = divmod(position + done, self._samples)
            samples, passes = self._epoch(self._seed, epoch)
            many = min(count - done, self._samples - place)
            found[done : done + many, 0] = passes[place : place + many]
            found[done : done + many, 1] = samples[place : place + many]
            done += many
        return found


def validation_batches(
    samples: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[tuple[int, int]]]:
    """One process's share of the validation samples in batches; every sample is in exactly one share."""
    share = [(0, index) for index in range(rank, samples, world_size)]
    return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
