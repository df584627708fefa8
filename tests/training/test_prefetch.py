"""One batch ahead, and never more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from atlas.errors import InputError
from atlas.training.perf.prefetch import Prefetcher
from atlas.types import Batch
from tests.policies.test_policy import make_batch

CPU = torch.device("cpu")


def test_one_batch_is_fetched_ahead_and_all_come_in_their_order() -> None:
    batches, read = [make_batch(size) for size in (1, 2, 3)], []

    def reading() -> Iterator[Batch]:
        for batch in batches:
            read.append(len(batch))
            yield batch

    prefetcher, ahead = Prefetcher(reading(), CPU), []
    for size in (1, 2, 3):
        assert len(prefetcher.take()) == size
        prefetcher.begin()
        prefetcher.begin()  # it is there already
        ahead.append(read[:])

    assert ahead == [[1, 2], [1, 2, 3], [1, 2, 3]]
    with pytest.raises(StopIteration):
        prefetcher.take()


def test_a_batch_that_cannot_be_read_does_not_end_the_step_before_it() -> None:
    def reading() -> Iterator[Batch]:
        yield make_batch(1)
        raise InputError("episode 7 is damaged")

    prefetcher = Prefetcher(reading(), CPU)
    prefetcher.take()
    prefetcher.begin()

    with pytest.raises(InputError, match="episode 7"):
        prefetcher.take()
