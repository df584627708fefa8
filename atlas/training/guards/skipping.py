"""Steps whose loss or gradient is not finite: skipped by all ranks together, counted, and traced to their samples."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch

from atlas.data.sampling.chunks import ChunkDataset
from atlas.types import LossTerms

logger = logging.getLogger(__name__)

_SHOWN = 64  # samples that a message names


class NotFinite(Exception):
    """Training has ended: in too many steps in a row the loss or gradient was not finite."""

    exit_code = 1


class SkippedSteps:
    """The number of steps that were left out, in all and in a row."""

    def __init__(self, limit: int, total: int, step: int) -> None:
        """limit: the number in a row that is too many. total, step: steps left out, and done, when training begins."""
        self.total, self.last_taken = total, step  # last_taken: optimizer steps done when the last one was taken
        self._limit, self._in_a_row = limit, 0

    def taken(self, step: int) -> None:
        """A step was taken; `step` steps are done."""
        self.last_taken, self._in_a_row = step, 0

    def left_out(self) -> bool:
        """A step was left out; True if that makes too many."""
        self.total += 1
        self._in_a_row += 1
        return self._in_a_row >= self._limit

    def too_many(self) -> NotFinite:
        """The error to raise once the checkpoint of the last step that was taken is written."""
        return NotFinite(
            f"Training ends: the loss or gradient was not finite in {self._in_a_row} steps in a row "
            f"(training.max_skipped_steps). The checkpoint of step {self.last_taken} is from before. The log names the "
            f"samples of each step. A lower training.learning_rate, a longer "
            f"training.warmup_steps or training.precision=fp32 may help."
        )


def not_finite(terms: Iterable[LossTerms]) -> torch.Tensor:
    """int64 0-d: 1 if any of the losses is not finite. Does not wait for the device."""
    losses = torch.stack([t.loss.detach().float() for t in terms])
    return (~losses.isfinite().all()).long()


def places(data: ChunkDataset, indices: Sequence[int]) -> str:
    """The episodes and frames of samples, for people."""
    frames: dict[int, list[int]] = {}
    for episode, frame in sorted(data.place(i) for i in indices[:_SHOWN]):
        frames.setdefault(episode, []).append(frame)
    more = f"; and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return "; ".join(f"episode {e} frame {', '.join(map(str, f))}" for e, f in frames.items()) + more
