"""Copies of tensors in the host's memory, made while training is held up as briefly as possible."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from atlas.system.process_control.cores import available_cores

_LARGE = 1 << 17  # bytes; smaller copies are done before another thread would have begun
_THREADS = 4  # a few cores use the memory's whole bandwidth


class HostMemory:
    """Memory for one set of copies, kept for the next one: allocating pages costs more than copying."""

    def __init__(self) -> None:
        self._kept: list[_Place] = []

    @torch.no_grad()
    def copy(self, value: Any) -> Any:
        """The same nested dicts, lists and tuples, with the tensors replaced by copies on the CPU.

        The copies are valid until the next call. Copies from a GPU go through pinned memory, all at once.
        """
        tensors: list[torch.Tensor] = []
        copies = self._place(value, tensors)
        del self._kept[len(tensors) :]
        blocks: list[tuple[int, int, int]] = []
        others: list[tuple[torch.Tensor, torch.Tensor]] = []
        for place, tensor in zip(self._kept, tensors, strict=True):
            if place.large and tensor.is_contiguous():
                blocks.append((place.tensor.data_ptr(), tensor.data_ptr(), tensor.nbytes))
            else:
                others.append((place.tensor, tensor))
        with _copying(blocks):
            if others:
                torch._foreach_copy_([kept for kept, _ in others], [t for _, t in others], non_blocking=True)
        for device in {t.device for _, t in others if t.is_cuda}:
            torch.cuda.synchronize(device)
        return copies

    def _place(self, value: Any, tensors: list[torch.Tensor]) -> Any:
        """The nested value with memory instead of its tensors, which are added to `tensors`."""
        if isinstance(value, torch.Tensor):
            number, form = len(tensors), (value.shape, value.dtype, value.is_cuda)
            tensors.append(value)
            if number >= len(self._kept) or self._kept[number].form != form:
                del self._kept[number:]  # first, so that two sets never exist at once
                self._kept.append(_Place(*form))
            return self._kept[number].tensor
        if isinstance(value, dict):
            return {key: self._place(item, tensors) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self._place(item, tensors) for item in value])
        return value


class _Place:
    """Room for a copy of one tensor."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, from_gpu: bool) -> None:
        self.form = (shape, dtype, from_gpu)
        self.tensor = torch.empty(shape, dtype=dtype, pin_memory=from_gpu)
        self.large = self.tensor.nbytes >= _LARGE and not from_gpu  # copied by other threads


@contextmanager
def _copying(blocks: Sequence[tuple[int, int, int]]) -> Iterator[None]:
    """Copy blocks of memory: (to, from, bytes). Other threads begin within the block, and are done after it.

    torch's own threads wait for one another after each tensor, which takes seconds in all on shared cores.
    """
    rest = iter(blocks)
    threads = min(_THREADS, available_cores(), 1 + len(blocks))
    helpers = [threading.Thread(target=_work, args=(rest,)) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    yield
    _work(rest)
    for helper in helpers:
        helper.join()


def _work(blocks: Iterator[tuple[int, int, int]]) -> None:
    for target, source, size in blocks:
        ctypes.memmove(target, source, size)  # without holding Python's lock
