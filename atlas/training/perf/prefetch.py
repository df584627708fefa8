"""Batches copied to the device while it is busy with the previous ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from atlas.types import Batch


class Prefetcher:
    """Yields a loader's batches, in order, on the device; each call of `begin` fetches one ahead.

    A batch is copied to a GPU while the GPU computes, on a separate stream, which needs pinned memory.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: Batch | Exception | None = None

    def begin(self) -> None:
        """Fetch the next batch, unless it is there, and start copying it. Errors are raised by `take`."""
        if self._next is None:
            try:
                self._next = self._sent(next(self._batches))
            except Exception as error:  # the step in progress does not need this batch, and should be finished
                self._next = error

    def take(self) -> Batch:
        """The next batch. Raises StopIteration after the last one, and whatever reading it raised."""
        self.begin()
        found, self._next = self._next, None
        if isinstance(found, Exception):
            raise found
        assert found is not None
        if self._stream is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_stream(self._stream)
            for tensor in found.tensors().values():
                tensor.record_stream(now)  # its memory belongs to the other stream
        return found

    def _sent(self, batch: Batch) -> Batch:
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            return batch.to(self._device)
