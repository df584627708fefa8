"""A policy's answers to a few samples when its checkpoint was written, kept with it.

After loading, the policy can be asked about the same samples again. The first difference (images, numbers, words,
weights, answers) shows what went wrong between training and use, without a simulator and without the data.
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
    """A policy that can count the tokens of an instruction."""

    def count_words(self, instructions: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True)
class ReferenceAnswers:
    """n validation samples, and the policy's inputs and actions for them."""

    step: int  # the policy's optimizer steps
    # uint8 [n, H, W, 3] of each camera, upright, as in the dataset; with a history [n, frames, H, W, 3]
    cameras: Mapping[str, torch.Tensor]
    images: torch.Tensor  # uint8 [n, V, 3, S, S], as the network saw them
    proprio: torch.Tensor  # float32 [n, P]
    scaled_proprio: torch.Tensor  # float32 [n, P]
    instructions: Sequence[str]
    words: Sequence[int] | None  # tokens of each instruction; None where the policy does not count them
    source: torch.Tensor  # int64 [n]
    key: torch.Tensor  # int64 [n]
    actions: torch.Tensor  # float32 [n, H, A], the policy's
    weights: Sequence[float]  # see `weights_sums`
    dtype: str  # of the weights, such as float32
    computed: str  # the type in which the answers were computed: `dtype`, or bfloat16
    execute: int | None  # how many actions of each chunk are executed; None where it is not known

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
        """The answers kept with a saved policy; None where it has none. Raises InputError for a damaged file."""
        file = directory / FILE
        if not file.is_file():
            return None
        values: Any = load_nested(file)
        try:
            if values.pop("format") != _FORMAT:
                raise ValueError("it comes from another version of Atlas")
            found = cls(**values)
            n = len(found.instructions)
            tensors = (found.images, found.proprio, found.source, found.key, found.actions, *found.cameras.values())
            if not n or any(len(tensor) != n for tensor in tensors):
                raise ValueError("its parts have different lengths")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{file} holds no reference answers of a policy ({error}).") from None
        return found


def samples_that_fit(bytes_of_one: int, there: int) -> int:
    """The number of samples to keep, if the camera images of each take this many bytes."""
    fitting = _ROOM // max(1, bytes_of_one)
    return min(there, max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, fitting)))


def scale_proprio(processor: PolicyProcessor, proprio: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Proprio float32 [n, P] scaled by the processor's statistics, as a network gets it."""
    return processor.proprio_scaler().normalize(proprio, source)


@torch.no_grad()
def weights_sums(weights: Mapping[str, torch.Tensor]) -> list[float]:
    """Two numbers that identify weights: the sum of all values and of their squares, in float64."""
    floating = [tensor.double() for tensor in weights.values() if tensor.is_floating_point()]
    return [sum(float(tensor.sum()) for tensor in floating), sum(float((tensor**2).sum()) for tensor in floating)]


def same_weights(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two `weights_sums` belong to the same weights, whatever the order of summation."""
    scale = math.sqrt(max(one[1], other[1], 1e-12))
    return abs(one[0] - other[0]) < 1e-4 * scale and math.isclose(one[1], other[1], rel_tol=1e-7)


def words_of(policy: Policy, instructions: Sequence[str]) -> list[int] | None:
    """The number of tokens of each instruction; None where the policy does not count them."""
    return policy.count_words(instructions) if isinstance(policy, CountsWords) else None
