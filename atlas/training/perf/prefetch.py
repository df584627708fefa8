"""Batches on their way to the device while it is busy with the ones before."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from atlas.types import Batch


class Prefetcher:
    """Gives a loader's batches, in their order, on the device; one is fetched ahead where `begin` is called.

    To a GPU a batch is copied beside what the GPU computes, on a stream of its own, which takes pinned memory.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: Batch | Exception | None = None

    def begin(self) -> None:
        """Fetch the next batch, unless it is there, and have it on its way. What goes wrong is raised by `take`."""
        if self._next is None:
            try:
                self._next = self._sent(next(self._batches))
            except Exception as error:  # the step that is at work needs no part of it, and shall be done
                self._next = error

    def take(self) -> Batch:
        """The next batch. Raises StopIteration after the last one, and what reading it raises."""
        self.begin()
        found, self._next = self._next, None
        if isinstance(found, Exception):
            raise found
        assert found is not None
        if self._stream is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_stream(self._stream)
            for tensor in found.tensors().values():
                tensor.record_stream(now)  # whose memory belongs to the other stream
        return found

    def _sent(self, batch: Batch) -> Batch:
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            return batch.to(self._device)
