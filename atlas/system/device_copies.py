"""From the host's memory onto a GPU, without waiting for it."""

from __future__ import annotations

import torch


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on `device`.

    To a GPU it goes by way of pinned memory: a copy from ordinary memory holds the host up until the GPU has done what
    it was given before.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
