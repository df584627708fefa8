"""A policy's weights on disk, and whether they fit the policy that is to load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from atlas.errors import InputError
from atlas.policies.pretrained_weights import FrozenWeights
from atlas.system.documents import parse_json

FROZEN = "frozen"  # the key of the file's metadata that names the frozen parts


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, FrozenWeights]]:
    """The tensors of a safetensors file, and the frozen parts they were trained with. Raises InputError."""
    try:
        with safe_open(path, framework="pt") as file:
            frozen = frozen_named(file.metadata() or {})
        return load_file(path), frozen
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} cannot be read as safetensors; it may be truncated ({error}).") from None


def frozen_named(metadata: Mapping[str, str]) -> dict[str, FrozenWeights]:
    """The frozen parts that a file's metadata names. Raises ValueError, TypeError, AttributeError for another form."""
    return {part: FrozenWeights(**values) for part, values in parse_json(metadata.get(FROZEN, "{}")).items()}


def check_weights(path: Path, weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError, which names the first of them, for tensors that do not fit `own` in name, shape or kind, or
    that hold values that are not finite."""
    check_forms(path, weights, own)
    _refuse(path, [f"'{k}' holds values that are not finite" for k, v in weights.items() if not is_finite(v)])


def check_forms(path: Path, weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Like `check_weights`, without the values: the weights may be on the meta device."""
    problems = [f"'{k}' is missing" for k in own if k not in weights]
    problems += [f"'{k}' is not part of this policy" for k in weights if k not in own]
    problems += [
        f"'{k}' has shape {list(v.shape)}, expected {list(own[k].shape)}"
        for k, v in weights.items()
        if k in own and own[k].shape != v.shape
    ]
    problems += [
        f"'{k}' is {v.dtype}, expected {own[k].dtype}"
        for k, v in weights.items()
        if k in own and (own[k].is_floating_point() != v.is_floating_point() or v.is_complex())
    ]
    _refuse(path, problems)


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise InputError(f"{path} does not fit the policy's config: {'; '.join(problems[:3])}{more}.")


def check_frozen(path: Path, saved: Mapping[str, FrozenWeights], frozen: Mapping[str, FrozenWeights]) -> None:
    """Raise InputError if a policy's frozen parts are not those that the weights in a file were trained with."""
    for part, now in frozen.items():
        was = saved.get(part)
        if was is None:
            raise InputError(f"{path} was saved with its own {part} part, but its config names a frozen one.")
        if was.sha256 != now.sha256:
            raise InputError(
                f"{path} was trained with other frozen {part} weights: '{was.reference}' then had the hash "
                f"{was.sha256[:12]}, but '{now.reference}' now has {now.sha256[:12]}. Give it the original weights."
            )


def is_finite(values: torch.Tensor) -> bool:
    """Whether all values are finite. Also works for types in which torch does not compute, such as 8-bit floats."""
    return bool((values.float() if values.is_floating_point() else values).isfinite().all())
