"""Copies of tensors in the host's memory, made while training is held up for as short as can be."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
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
        self._kept: list[_Place] = []

    @torch.no_grad()
    def copy(self, value: Any) -> Any:
        """The same nested dicts, lists and tuples, with copies of the tensors, on the CPU, in place of them.

        The copies are valid until the next call. Those from a GPU go through pinned memory, all at once.
        """
        tensors: list[torch.Tensor] = []
        copies = self._place(value, tensors)
        del self._kept[len(tensors) :]
        pairs = list(zip(self._kept, tensors, strict=True))
        large = [(place.bytes, _bytes(t)) for place, t in pairs if place.bytes is not None and t.is_contiguous()]
        others = [(place.tensor, t) for place, t in pairs if place.bytes is None or not t.is_contiguous()]
        with _copying(large):
            if others:
                torch._foreach_copy_([kept for kept, _ in others], [t for _, t in others], non_blocking=True)
        for device in {t.device for _, t in others if t.is_cuda}:
            torch.cuda.synchronize(device)
        return copies

    def _place(self, value: Any, tensors: list[torch.Tensor]) -> Any:
        """The nested value with memory in place of its tensors, which are added to `tensors`."""
        if isinstance(value, torch.Tensor):
            number, form = len(tensors), (value.shape, value.dtype, value.is_cuda)
            tensors.append(value)
            if number >= len(self._kept) or self._kept[number].form != form:
                del self._kept[number:]  # first, so that there are never two sets
                self._kept.append(_Place(*form))
            return self._kept[number].tensor
        if isinstance(value, Mapping):
            return {key: self._place(item, tensors) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self._place(item, tensors) for item in value])
        return value


class _Place:
    """Room for a copy of one tensor."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, from_gpu: bool) -> None:
        self.form = (shape, dtype, from_gpu)
        self.tensor = torch.empty(shape, dtype=dtype, pin_memory=from_gpu)
        # Where other threads should copy it.
        self.bytes = _bytes(self.tensor) if self.tensor.nbytes >= _LARGE and not from_gpu else None


@contextmanager
def _copying(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[None]:
    """Copy each second array into the first; begun by other threads within the block, and done after it.

    The threads of torch wait for one another after each tensor, which takes seconds in all where cores are shared.
    """
    rest = iter(pairs)
    threads = min(_THREADS, available_cores(), 1 + len(pairs))
    helpers = [threading.Thread(target=_work, args=(rest,)) for _ in range(threads - 1)]
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
