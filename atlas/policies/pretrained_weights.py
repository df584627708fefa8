"""Pretrained weights that a policy uses unchanged: their precision, and the reference that a saved policy keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class FrozenWeights:
    """The source of a part's frozen weights, and their hash; a policy refuses others when it is loaded."""

    reference: str  # as in the config: a path, or a name on a hub
    sha256: str  # of `WeightsHash`


class WeightsHash:
    """SHA-256 over tensors' names, types, shapes and bytes, fed in any fixed order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().cpu().contiguous()
        self._hash.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        self._hash.update(tensor.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def weights_hash(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The hash of named tensors, sorted by name."""
    total = WeightsHash()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        total.add(name, tensor)
    return total.hexdigest()


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
