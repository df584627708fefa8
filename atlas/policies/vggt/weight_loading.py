"""Strict reading of a published VGGT checkpoint: all names and shapes are checked before any weight changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from atlas.errors import InputError
from atlas.system.hub import find_weights

PARTS = ("aggregator.", "camera_head.", "depth_head.", "point_head.", "track_head.")  # what the published file holds
_LISTED = 20  # problems named in a message


@contextmanager
def open_checkpoint(path: Path) -> Iterator[tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]]:
    """A safetensors file as (shapes of everything in it, a function that reads one tensor by name)."""
    try:
        with safe_open(path, framework="pt") as file:
            yield {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.get_tensor
    except (SafetensorError, OSError) as error:
        raise InputError(f"The file {path} cannot be read as safetensors; it may be truncated: {error}") from None


def check_names_and_shapes(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], source: str, what: str
) -> None:
    """Raise InputError that names what is missing, unknown or misshaped in `found`, the shapes that `source` holds."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not one of its tensors" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {list(found[name])}, but should be {list(expected[name])}"
        for name in expected.keys() & found.keys()
        if list(found[name]) != list(expected[name])
    ]
    if problems:
        listed = "".join(f"\n  {problem}" for problem in sorted(problems)[:_LISTED])
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise InputError(f"{source} does not hold the weights of {what}:{listed}{more}")


def load_part(module: nn.Module, prefix: str, path: Path, what: str) -> None:
    """Fill a module, named as in the checkpoint, with the safetensors file's tensors that start with `prefix`.

    The file may hold the other published parts, which are not read, but nothing else. `what` names the module in
    messages. Raises InputError that names every missing, unknown or misshaped tensor, and then changes no weight.
    """
    assert prefix in PARTS
    ours = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    if any(tensor.is_meta for tensor in ours.values()):
        raise InputError(f"{what} is on the meta device, which holds no weights; call to_empty(device=...) first.")
    others = tuple(part for part in PARTS if part != prefix)
    with open_checkpoint(path) as (shapes, read):
        found = {name: shape for name, shape in shapes.items() if not name.startswith(others)}
        check_names_and_shapes({name: t.shape for name, t in ours.items()}, found, f"The file {path}", what)
        with torch.no_grad():
            for name, tensor in ours.items():
                tensor.copy_(read(name))


class PublishedHead(nn.Module):
    """A head whose modules are named as in the published checkpoint, under its own prefix."""

    prefix: ClassVar[str]
    title: ClassVar[str]  # for messages

    def checkpoint_state_dict(self) -> dict[str, Tensor]:
        """All weights under the published checkpoint's names (`prefix`*)."""
        return {self.prefix + name: tensor for name, tensor in self.state_dict().items()}

    def load_checkpoint(self, reference: str | Path, key: str = "The VGGT checkpoint") -> None:
        """Load the head's weights from a published VGGT checkpoint; only the tensors of `prefix` are read.

        reference: a .safetensors file, a folder with a model.safetensors, or a name on the Hugging Face hub. Raises
        InputError that names every missing, unknown or misshaped tensor, and then changes no weight; `key` names the
        setting that the reference comes from.
        """
        load_part(self, self.prefix, find_weights(reference, key), self.title)
