"""Torch loaders over the chunk dataset: the order is decided beforehand, the workers only read."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader

from atlas.data.sampling.chunks import ChunkDataset, Sample
from atlas.types import Batch

_FOR_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # signals that a whole group may receive
PREFETCHED = 4  # batches that each worker reads ahead


class _Batches:
    """The batches to read, as torch's loader takes them (an object, so that each worker start reads them again)."""

    def __init__(self, batches: Iterable[list[Sample]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterable[list[Sample]]:  # type: ignore[override]
        return iter(self._batches)


class _Loader(DataLoader[Batch]):
    """Holds signals back while workers start: until a worker has left the rank's process group, they would end it."""

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_ALL)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_count(asked: int | None, device: torch.device) -> int:
    """The number of workers that `data.num_workers` asks for. If null: 4 with a GPU, otherwise none, which leaves the
    CPUs to the model."""
    return asked if asked is not None else 4 * (device.type == "cuda")


def make_loader(
    dataset: ChunkDataset,
    batches: Iterable[list[Sample]],
    num_workers: int,
    pin_memory: bool = False,
    again: bool = False,
) -> DataLoader[Batch]:
    """A loader that yields one Batch for each list of samples, in that order.

    again: it is iterated over several times, and its workers stay alive in between.
    """
    return _Loader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=_Batches(batches),  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        worker_init_fn=_leave_process_group,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCHED if num_workers else None,
        persistent_workers=again and num_workers > 0,
        generator=torch.Generator(),  # each pass draws a number, which must not come from training's generator
    )


def _leave_process_group(_: int) -> None:
    """A signal to the rank's whole group (Ctrl-C, a scheduler's SIGTERM) is for the rank, which still needs its data
    to finish the step and save. Workers end with the rank: torch has them watch their parent."""
    os.setpgrp()
    for number in signal.sigpending() & {*_FOR_ALL}:
        signal.sigwait({number})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_ALL)


def _as_it_is(batch: Batch) -> Batch:
    return batch
