"""The precision of frozen weights, and keeping autocast away from modules with their own precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within it, tensors on `device` are computed in their own precision; also where no autocast exists."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def frozen_dtype(precision: str) -> torch.dtype:
    """The type of frozen weights: `fp32`, `bf16`, or `auto`: bfloat16 with a GPU, and float32 on CPUs, where it is
    faster."""
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model's weights another type, in place, and leave its buffers as they are: rounded frequencies of rotary
    positions would put far tokens in the wrong place."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
