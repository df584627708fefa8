"""What the frozen beginning of a published policy says of pictures, which `data.feature_cache` may hold.

A picture goes through a tower of vision and a projection to tokens. What is cached is what comes out of the last of the
two that nothing is trained before or in.
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
    """A network with a tower and a projection."""

    sight: tuple[str, str]  # the modules' names

    def see(self, pictures: torch.Tensor) -> torch.Tensor:
        """The tower: float [B, 3, S, S] in [-1, 1] to [B, patches, D]."""

    def project(self, seen: torch.Tensor) -> torch.Tensor:
        """What the tower says to tokens [B, N, width]."""

    def get_submodule(self, target: str) -> nn.Module: ...


def frozen_sight(network: Sees, trained: Collection[str]) -> tuple[str, ...]:
    """The names of what pictures go through before anything that is trained. trained: names of parameters."""

    def stays(part: str) -> bool:
        return not any(name.startswith(f"{part}.") for name in trained)

    return tuple(takewhile(stays, network.sight))


def sight_weights(network: Sees, parts: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of these parts, by their names in the network."""
    for part in parts:
        yield from network.get_submodule(part).named_parameters(prefix=part)


def look_on(network: Sees, parts: Collection[str], features: torch.Tensor) -> torch.Tensor:
    """Tokens [B, N, width] from what came out of `parts`, bfloat16 [B, N, D]."""
    last = next(network.get_submodule(network.sight[-1]).parameters())
    seen = features.to(last.dtype)
    return seen if len(parts) == len(network.sight) else network.project(seen)


class PictureEncoder:
    """Images float [B, V, 3, H, W] in [0, 1] to what is cached of them, bfloat16 [B, V * N, D]."""

    def __init__(self, network: Sees, parts: tuple[str, ...], fit: ImageFit, frozen: FrozenWeights | None) -> None:
        """network: it needs weights in `parts` alone. frozen: these, if they are there."""
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


# Of a section, and whether weights are read: the network, on the meta device but for what of its sight stays as it is,
# the names of these parts, and how pictures are fitted.
Opening = Callable[[Any, bool], tuple[Sees, tuple[str, ...], ImageFit]]


class CachedSight:
    """The `CachedEncoder` of a published policy; see atlas/policies/feature_cache_filling.py."""

    def __init__(self, config: PublishedConfig, opening: Opening) -> None:
        """Raises InputError where nothing of the sight stays as it is."""
        if config.weights == "random":
            raise InputError(
                "data.feature_cache holds what frozen weights say, and model.weights is random: leave one of them out."
            )
        self._config, self._opening = config, opening
        if not self._open(False)[1]:
            raise InputError(
                f"data.feature_cache holds what a frozen vision tower says, and this policy of type {config.type} "
                f"trains its own: {config.how_vision_stays}."
            )

    def _open(self, read_weights: bool) -> tuple[Sees, tuple[str, ...], ImageFit]:
        return self._opening(self._config, read_weights)

    def feature_shape(self, image_size: int) -> tuple[int, int]:
        network, parts, fit = self._open(False)
        with torch.device("meta"):
            tokens = PictureEncoder(network, parts, fit, None)(torch.zeros(1, 1, 3, fit.height, fit.width))
        return tokens.shape[1], tokens.shape[2]

    def feature_source(self) -> dict[str, Any]:
        """Pictures are whole: how they are fitted counts, and `data.image_size` does not."""
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
