"""Copying from host memory to a GPU without waiting for the copy."""

from __future__ import annotations

import torch


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor, on `device`.

    The copy to a GPU goes through pinned memory: a copy from pageable memory blocks the host until the GPU has finished
    the work queued before it.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
