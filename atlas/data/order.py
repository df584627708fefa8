"""The order in which training sees its samples: one global order, a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0 … samples-1, int64."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


class TrainOrder:
    """An endless stream of samples, epoch after epoch, dealt to the processes in batches.

    Each sample comes exactly once an epoch; a batch may cross the border between two epochs, so that none is short.
    One process with batch 32 and two with batch 16 see the same samples at the same step.
    """

    def __init__(
        self,
        samples: int,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        """start: a step and the samples seen by then, where a resumed run with other batches goes on."""
        assert samples > 0
        self._samples, self._seed, self._start = samples, seed, start
        self._batch, self._accumulation, self._world = batch_size, accumulation, world_size
        self.samples_a_step = batch_size * accumulation * world_size

    def steps_for(self, epochs: int) -> int:
        """Optimizer steps until every sample was seen `epochs` times."""
        return -(-self._samples * epochs // self.samples_a_step)

    def epoch_at(self, step: int) -> float:
        """Epochs gone through after `step` optimizer steps."""
        return self.samples_seen(step) / self._samples

    def samples_seen(self, step: int) -> int:
        """Samples that all processes together have seen after `step` optimizer steps."""
        first_step, seen = self._start
        return seen + (step - first_step) * self.samples_a_step

    def step_samples(self, step: int) -> list[tuple[int, int]]:
        """(epoch, index) of all samples of all processes at one optimizer step (counted from 0)."""
        first = self.samples_seen(step)
        return [self._sample(position) for position in range(first, first + self.samples_a_step)]

    def batches(self, rank: int, first_step: int, last_step: int) -> Iterator[list[tuple[int, int]]]:
        """One process's batches of the steps [first_step, last_step), `accumulation` a step."""
        for step in range(first_step, last_step):
            for part in range(self._accumulation):
                start = self.samples_seen(step) + (part * self._world + rank) * self._batch
                yield [self._sample(position) for position in range(start, start + self._batch)]

    def rank_samples(self, rank: int, step: int) -> list[int]:
        """The indices of one process's samples at one optimizer step."""
        return [index for batch in self.batches(rank, step, step + 1) for _, index in batch]

    def _sample(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self._samples)
        return epoch, int(epoch_order(self._samples, self._seed, epoch)[place])


def validation_batches(
    samples: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[tuple[int, int]]]:
    """One process's share of the validation samples in batches; every sample is in exactly one share."""
    share = [(0, index) for index in range(rank, samples, world_size)]
    return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
