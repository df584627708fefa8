"""What a policy answered to a few samples when its checkpoint was written, kept with it.

Whoever loads the policy can ask it the same again: what differs then, and where first (pictures, numbers, words,
weights, answers), says what has gone wrong between training and use, without a simulator and without the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from atlas.errors import InputError
from atlas.policies.processor import PolicyProcessor
from atlas.system.files import atomic_path
from atlas.system.tensors import load_nested, save_nested
from atlas.types import Observation

if TYPE_CHECKING:
    from atlas.policies.base import Policy

FILE = "reference.safetensors"  # in a saved policy
_MOST_SAMPLES, _FEWEST_SAMPLES = 6, 2
_ROOM = 4 * 2**20  # bytes of camera images
_FORMAT = 1


@runtime_checkable
class CountsWords(Protocol):
    """A policy that can say how many tokens it reads an instruction as."""

    def count_words(self, instructions: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True)
class ReferenceAnswers:
    """n samples of validation, and what was made of them."""

    step: int  # optimizer steps that the policy had learned for
    # uint8 [n, H, W, 3] of each camera, upright, as the dataset has them; with a history [n, frames, H, W, 3]
    cameras: Mapping[str, torch.Tensor]
    images: torch.Tensor  # uint8 [n, V, 3, S, S], as the network saw them
    proprio: torch.Tensor  # float32 [n, P]
    scaled_proprio: torch.Tensor  # float32 [n, P]
    instructions: Sequence[str]
    words: Sequence[int] | None  # tokens of each instruction; None where the policy does not say
    source: torch.Tensor  # int64 [n]
    key: torch.Tensor  # int64 [n]
    actions: torch.Tensor  # float32 [n, H, A], what the policy answered
    weights: Sequence[float]  # see `weights_sums`
    dtype: str  # of the weights, such as float32
    computed: str  # what it was computed in: that, or bfloat16
    execute: int | None  # actions of each chunk that are executed; None where nobody has said

    @property
    def observations(self) -> list[Observation]:
        """The samples as an environment would show them."""
        return [self._observation(i, instruction) for i, instruction in enumerate(self.instructions)]

    def _observation(self, i: int, instruction: str) -> Observation:
        images = {camera: each[i].numpy() for camera, each in self.cameras.items()}
        proprio = self.proprio[i].numpy()
        if next(iter(images.values())).ndim == 3:
            return Observation(images, proprio, instruction)
        steps = len(next(iter(images.values())))
        *past, present = [
            Observation({camera: each[frame] for camera, each in images.items()}, numbers, instruction)
            for frame, numbers in enumerate(proprio.reshape(steps, -1))
        ]
        return replace(present, past=tuple(past))

    def save(self, directory: Path) -> None:
        """Write it into the folder of a saved policy, atomically. Raises OSError."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        with atomic_path(directory / FILE) as partial:
            save_nested(partial, {"format": _FORMAT, **values})

    @classmethod
    def load(cls, directory: Path) -> ReferenceAnswers | None:
        """Of a saved policy; None for those that keep none. Raises InputError for a damaged file."""
        file = directory / FILE
        if not file.is_file():
            return None
        values: Any = load_nested(file)
        try:
            if values.pop("format") != _FORMAT:
                raise ValueError("it is of another version of Atlas")
            found = cls(**values)
            n = len(found.instructions)
            tensors = (found.images, found.proprio, found.source, found.key, found.actions, *found.cameras.values())
            if not n or any(len(tensor) != n for tensor in tensors):
                raise ValueError("its parts are of different lengths")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{file} holds no reference answers of a policy ({error}).") from None
        return found


def samples_that_fit(bytes_of_one: int, there: int) -> int:
    """How many of the samples are kept whose camera images take so many bytes each."""
    fitting = _ROOM // max(1, bytes_of_one)
    return min(there, max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, fitting)))


def scale_proprio(processor: PolicyProcessor, proprio: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Proprio float32 [n, P] as a network gets it, by the statistics of the processor."""
    return processor.proprio_scaler().normalize(proprio, source)


@torch.no_grad()
def weights_sums(weights: Mapping[str, torch.Tensor]) -> list[float]:
    """Two numbers that other weights do not have: the sum of all, and of their squares, in float64."""
    floating = [tensor.double() for tensor in weights.values() if tensor.is_floating_point()]
    return [sum(float(tensor.sum()) for tensor in floating), sum(float((tensor**2).sum()) for tensor in floating)]


def same_weights(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two `weights_sums` are of the same weights, added up in whatever order."""
    scale = math.sqrt(max(one[1], other[1], 1e-12))
    return abs(one[0] - other[0]) < 1e-4 * scale and math.isclose(one[1], other[1], rel_tol=1e-7)


def words_of(policy: Policy, instructions: Sequence[str]) -> list[int] | None:
    """The tokens of each instruction, where the policy says how many it reads."""
    return policy.count_words(instructions) if isinstance(policy, CountsWords) else None
