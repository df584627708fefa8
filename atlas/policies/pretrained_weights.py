"""Pretrained weights that a policy uses unchanged: named in what is saved, but not written into it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FrozenWeights:
    """Where a part's frozen weights come from, and their hash; a policy refuses others when it is loaded."""

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
