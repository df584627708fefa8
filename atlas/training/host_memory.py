"""Copies of tensors in the host's memory, made while training is held up for as short as can be."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from atlas.cores import available_cores

_LARGE = 1 << 17  # bytes; below, the copying is over before another thread has begun
_THREADS = 4  # few cores have the memory's whole bandwidth


class HostMemory:
    """Memory for one set of copies, kept for the next one: new pages cost more than the copying."""

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []
        self._forms: list[tuple[Any, ...]] = []  # of the tensors that it was made for
        self._large: list[tuple[int, np.ndarray]] = []  # numbers and bytes of those that are copied on several threads
        self._others: list[int] = []

    @torch.no_grad()
    def copy(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies that are valid until the next call. Those from a GPU go through pinned memory, all at once."""
        self._fit(tensors)
        with _copying([(kept, _bytes(tensors[i])) for i, kept in self._large]):
            others = self._others
            torch._foreach_copy_([self._kept[i] for i in others], [tensors[i] for i in others], non_blocking=True)
        for device in {t.device for t in tensors if t.is_cuda}:
            torch.cuda.synchronize(device)
        return list(self._kept)

    def _fit(self, tensors: Sequence[torch.Tensor]) -> None:
        forms = [(t.shape, t.dtype, t.device, t.is_contiguous()) for t in tensors]
        if self._forms == forms:
            return
        self._forms, self._large, self._others = forms, [], []
        self._kept.clear()  # first, so that there are never two sets
        for i, tensor in enumerate(tensors):
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._kept.append(kept)
            if tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.nbytes >= _LARGE:
                self._large.append((i, _bytes(kept)))
            else:
                self._others.append(i)


@contextmanager
def _copying(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[None]:
    """Copy each second array into the first; begun by other threads within the block, and done after it.

    The threads of torch wait for one another after each tensor, which takes seconds in all where cores are shared.
    """
    rest = iter(pairs)
    helpers = [threading.Thread(target=_work, args=(rest,)) for _ in range(min(_THREADS, available_cores()) - 1)]
    for helper in helpers:
        helper.start()
    yield
    _work(rest)
    for helper in helpers:
        helper.join()


def _work(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    for target, source in pairs:
        np.copyto(target, source)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """A view of a contiguous tensor, uint8 [n]."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()
