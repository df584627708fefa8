"""Fills a network with published weights, strictly: each tensor of a file is used, or is known to be left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from atlas.errors import InputError
from atlas.policies.published.lazy_tensors import TensorFile

logger = logging.getLogger(__name__)

PREFIX = "model."  # begins all names of a file, or none
# Statistics that LeRobot once kept among the weights; Atlas reads them from the processor files instead.
OLD_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.", "normalize.", "unnormalize.")
BACKBONE_FILE = "backbone.safetensors"  # in `frozen` of a saved policy: a copy of the weights that are not trained
_LISTED = 5  # problems named in a message

Names = Mapping[str, str]  # {the usual name in files, without `model.`: this file's name}
Precision = Callable[[str, torch.dtype], torch.dtype]  # (the network's name, the stored type) -> the type to hold it in


def _same(name: str) -> str:
    return name


@dataclass(frozen=True)
class Naming:
    """The names of a network's tensors in files, without the leading `model.`; by default the network's own names."""

    published: Callable[[str], str] = _same  # the network's name -> the usual one in files
    usual: Callable[[str], str] = _same  # a name in a file -> the usual one, where files differ


AS_HERE = Naming()


def match_names(
    file: TensorFile,
    expected: Mapping[str, Iterable[int]],
    called: str,
    aliases: Mapping[str, str] | None = None,
    unused: Iterable[str] = (),
    naming: Naming = AS_HERE,
) -> Names:
    """Find the tensor of a file that belongs to each tensor of a network, by names and shapes alone.

    expected: {the usual name in files, without `model.`: shape}. aliases: {name: another name for the same numbers},
    for a table that some files store once. unused: names that a file may have and the network lacks. Raises InputError,
    which names them, for tensors that are missing, extra or of another shape.
    """
    stored = {naming.usual(_without_prefix(name)): name for name in file.tensors}
    old = [name for name in stored if name.startswith(OLD_STATISTICS)]
    if old:
        logger.warning("%s: %d old statistics among the weights are left out: %s.", called, len(old), _some(old))
    if len(stored) < len(file.tensors):
        raise InputError(f"{file.path} holds some tensors twice, such as with and without a leading '{PREFIX}'.")
    names, problems = {}, []
    for name, shape in expected.items():
        other = (aliases or {}).get(name)
        found = stored.get(name, stored.get(other) if other is not None else None)
        if found is None:
            problems.append(f"'{name}' is missing")
        elif file.tensors[found].shape != tuple(shape):
            problems.append(f"'{name}' has shape {list(file.tensors[found].shape)}, expected {list(shape)}")
        else:
            names[name] = found
    left = set(stored) - set(expected) - set(old) - set(unused)
    problems += [f"'{name}' is not part of this policy" for name in sorted(left)]
    if problems:
        more = f" (and {len(problems) - _LISTED} more)" if len(problems) > _LISTED else ""
        raise InputError(f"{file.path} does not fit its config: {'; '.join(problems[:_LISTED])}{more}.")
    return names


def precision_of(network: nn.Module, frozen: str) -> Precision:
    """float32 for trained weights; for others what `frozen` says: stored, float32 or bfloat16."""
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(frozen)

    def precision(name: str, stored: torch.dtype) -> torch.dtype:
        return torch.float32 if name in trained else chosen or stored

    return precision


def fill(
    network: nn.Module,
    path: Path,
    precision: Precision,
    called: str,
    aliases: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
    only: Collection[str] | None = None,
    unused: Iterable[str] = (),
    naming: Naming = AS_HERE,
) -> None:
    """Fill each tensor of a network, which may be on the meta device, from a published file, strictly.

    Tensors are read one by one, each moved to the device and its precision before the next. only: the names to fill;
    the others stay as they are, but must be in the file too. For the rest see `match_names`, whose InputError comes
    before any change. Also raises InputError for numbers that are not finite.
    """
    state = network.state_dict()
    with TensorFile(path) as file:
        shapes = {naming.published(name): tensor.shape for name, tensor in state.items()}
        names = match_names(file, shapes, called, aliases, unused, naming)
        for name in state:
            if only is None or name in only:
                put(network, name, _read(file, names[naming.published(name)], name, precision, device))


def _read(file: TensorFile, stored: str, name: str, precision: Precision, device: torch.device | str) -> torch.Tensor:
    """A tensor on the device. A function of its own, so that the host's copy is freed on return."""
    values = file.read(stored)
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise InputError(f"{file.path}: '{stored}' holds values that are not finite.")
    return values.to(device=device, dtype=precision(name, values.dtype))


def read_beside(path: Path, unused: Iterable[str], naming: Naming = AS_HERE) -> dict[str, torch.Tensor]:
    """The unused tensors that a published file has, by their usual names. Raises InputError."""
    with TensorFile(path) as file:
        stored = {naming.usual(_without_prefix(name)): name for name in file.tensors}
        return {name: file.read(stored[name]) for name in unused if name in stored}


def fill_backbone(
    network: nn.Module,
    folder: Path,
    published: Callable[[Path], Path],
    precision: Precision,
    called: str,
    aliases: Mapping[str, str] | None = None,
    unused: Iterable[str] = (),
    naming: Naming = AS_HERE,
    device: torch.device | str = "cpu",
) -> None:
    """Fill the frozen weights of a saved policy from the copy in its folder, or else from a published file.

    published: finds that file, given the folder of the saved policy.
    """
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    copy = _copy_of_backbone(folder)
    if not copy.exists():
        if frozen:
            fill(network, published(folder), precision, called, aliases, device, frozen, unused, naming)
        return
    with TensorFile(copy) as file:
        names = {name: f"network.{name}" for name in frozen}
        missing = [name for name in names.values() if name not in file.tensors]
        if missing or len(names) != len(file.tensors):
            raise InputError(f"{copy} is not the frozen part of this policy: {_some(missing) or 'it has more'}.")
        for name in frozen:
            put(network, name, _read(file, names[name], name, precision, device))


def holds_backbone(folder: Path) -> bool:
    """Whether a saved policy has a copy of its frozen weights, so that it needs no other file."""
    return _copy_of_backbone(folder).exists()


def _copy_of_backbone(folder: Path) -> Path:
    return folder / "frozen" / BACKBONE_FILE


def allocate(network: nn.Module, everything: bool = False, device: torch.device | str = "cpu") -> None:
    """Give the trained weights, or all, float32 memory on the device, into which they are read next."""
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    for name, tensor in network.state_dict().items():
        if everything or name in trained:
            put(network, name, torch.empty(tensor.shape, device=device))


def put(network: nn.Module, name: str, values: torch.Tensor) -> None:
    """Set a parameter or buffer by its name, also to values on another device or of another precision."""
    owner_name, _, leaf = name.rpartition(".")
    owner = network.get_submodule(owner_name)
    was = getattr(owner, leaf)
    setattr(owner, leaf, nn.Parameter(values, was.requires_grad) if isinstance(was, nn.Parameter) else values)


def check_file(
    path: Path,
    network: nn.Module,
    called: str,
    aliases: Mapping[str, str] | None = None,
    unused: Iterable[str] = (),
    naming: Naming = AS_HERE,
) -> None:
    """Check that a file fits a network, without reading numbers. Raises InputError as `match_names` does."""
    with TensorFile(path) as file:
        shapes = {naming.published(name): tensor.shape for name, tensor in network.state_dict().items()}
        match_names(file, shapes, called, aliases, unused, naming)


def _without_prefix(name: str) -> str:
    return name.removeprefix(PREFIX)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
