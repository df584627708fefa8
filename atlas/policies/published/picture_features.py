"""Image features from the frozen first part of a published policy, which `data.feature_cache` may hold.

An image goes through a vision tower and a projection to tokens. The cache holds the output of the last frozen part: of
both where both are frozen, of the tower where only it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import nn

from atlas.data.image_fit import ImageFit
from atlas.errors import InputError
from atlas.policies.pretrained_weights import FrozenWeights, weights_hash
from atlas.policies.published.published_section import PublishedConfig


class Sees(Protocol):
    """A network with a vision tower and a projection."""

    sight: tuple[str, str]  # the modules' names

    def see(self, pictures: torch.Tensor) -> torch.Tensor:
        """The tower: float [B, 3, S, S] in [-1, 1] to [B, patches, D]."""

    def project(self, seen: torch.Tensor) -> torch.Tensor:
        """The projection: the tower's output to tokens [B, N, width]."""

    def get_submodule(self, target: str) -> nn.Module: ...


def frozen_sight(network: Sees, trained: Collection[str]) -> tuple[str, ...]:
    """The names of the parts that images pass before the first trained one. trained: names of parameters."""

    def stays(part: str) -> bool:
        return not any(name.startswith(f"{part}.") for name in trained)

    return tuple(takewhile(stays, network.sight))


def sight_weights(network: Sees, parts: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of these parts, by their names in the network."""
    for part in parts:
        yield from network.get_submodule(part).named_parameters(prefix=part)


def look_on(network: Sees, parts: Collection[str], features: torch.Tensor) -> torch.Tensor:
    """Tokens [B, N, width] from the output of `parts`, bfloat16 [B, N, D]."""
    last = next(network.get_submodule(network.sight[-1]).parameters())
    seen = features.to(last.dtype)
    return seen if len(parts) == len(network.sight) else network.project(seen)


class PictureEncoder:
    """Images float [B, V, 3, H, W] in [0, 1] to the features in the cache, bfloat16 [B, V * N, D]."""

    def __init__(self, network: Sees, parts: tuple[str, ...], fit: ImageFit, frozen: FrozenWeights | None) -> None:
        """network: only `parts` need weights. frozen: those weights, if they are there."""
        self._network, self._parts, self._fit, self.frozen = network, parts, fit, frozen

    def to(self, device: torch.device) -> PictureEncoder:
        for part in self._parts:
            self._network.get_submodule(part).to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        pictures = self._fit(images) * 2 - 1
        seen = self._network.see(pictures.flatten(0, 1))
        if len(self._parts) == len(self._network.sight):
            seen = self._network.project(seen)
        return seen.unflatten(0, images.shape[:2]).flatten(1, 2).bfloat16()


# (section, whether to read weights) -> (network, names of its frozen vision parts, how images are fitted). Only the
# frozen vision parts have memory; the rest of the network is on the meta device.
Opening = Callable[[Any, bool], tuple[Sees, tuple[str, ...], ImageFit]]


class CachedSight:
    """The `CachedEncoder` of a published policy; see atlas/policies/feature_cache_filling.py."""

    def __init__(self, config: PublishedConfig, opening: Opening) -> None:
        """Raises InputError where no part of the vision is frozen."""
        if config.weights == "random":
            raise InputError(
                "data.feature_cache holds features of pretrained weights, but model.weights is random: leave one of "
                "them out."
            )
        self._config, self._opening = config, opening
        if not self._open(False)[1]:
            raise InputError(
                f"data.feature_cache holds features of a frozen vision tower, but this policy of type {config.type} "
                f"trains its tower: {config.how_vision_stays}."
            )

    def _open(self, read_weights: bool) -> tuple[Sees, tuple[str, ...], ImageFit]:
        return self._opening(self._config, read_weights)

    def feature_shape(self, image_size: int) -> tuple[int, int]:
        network, parts, fit = self._open(False)
        with torch.device("meta"):
            tokens = PictureEncoder(network, parts, fit, None)(torch.zeros(1, 1, 3, fit.height, fit.width))
        return tokens.shape[1], tokens.shape[2]

    def feature_source(self) -> dict[str, Any]:
        """Images are cached whole: the features depend on how they are fitted, and not on `data.image_size`."""
        _, parts, fit = self._open(False)
        return {"backbone_parts": list(parts), "image_size": fit.to_dict()}

    def weights_hash(self) -> str:
        network, parts, _ = self._open(True)
        return weights_hash(sight_weights(network, parts))

    def check_pretrained(self) -> None:
        self._config.check_pretrained()

    def build_cached(self) -> PictureEncoder:
        network, parts, fit = self._open(True)
        return PictureEncoder(
            network, parts, fit, FrozenWeights(self._config.pretrained, weights_hash(sight_weights(network, parts)))
        )
