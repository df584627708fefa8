"""What ranks tell each other in every step."""

from __future__ import annotations

import torch
from accelerate import Accelerator


class Consensus:
    """One small exchange, so that all ranks skip the same steps and stop after the same one."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._device = accelerator.device
        self._several = accelerator.num_processes > 1

    def largest(self, values: torch.Tensor) -> list[int]:
        """The largest of each value over all ranks. values: int64 [n], on the device; every rank must call it."""
        if self._several:
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return values.tolist()

    def tensor(self, value: int) -> torch.Tensor:
        """int64 0-d on the device, which is not waited for."""
        return torch.full((), value, dtype=torch.int64, device=self._device)
