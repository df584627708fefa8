"""Tensors in files of the safetensors layout, written so that other threads keep running meanwhile.

The safetensors library copies everything it writes while it holds Python's interpreter lock, which would stop a
training loop beside it. Here only file writes remain, and they release the lock.
The layout: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from atlas.errors import InputError
from atlas.system.documents import parse_json

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_NESTED = "nested"  # the key of the metadata


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device as a safetensors file, not atomically. Raises OSError.

    The same tensors give the same bytes. metadata: as in safetensors, for readers.
    """
    # The widest numbers come first: the layout has no gaps, so this keeps all of them aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("wb", buffering=0) as file:
            _write(file, memoryview(struct.pack("<Q", len(text)) + text))
            for name in names:
                _write(file, _bytes_of(tensors[name]))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # the original does not name the file


def save_nested(path: Path, value: Any) -> None:
    """Write dicts (of str or int keys), lists and tuples of tensors, numbers, strings and None; see `load_nested`."""
    tensors: dict[str, torch.Tensor] = {}
    described = _describe(value, "", tensors)
    save_tensors(path, tensors, {_NESTED: json.dumps(described)})


def load_nested(path: Path) -> Any:
    """Read what `save_nested` wrote, onto the CPU. Raises InputError for a file that is damaged or missing."""
    try:
        with safe_open(path, framework="pt") as file:
            described = parse_json((file.metadata() or {})[_NESTED])
            # Clones, as the library's tensors may be windows into the file.
            return _restore(described, {name: file.get_tensor(name).clone() for name in file.keys()})
    except FileNotFoundError:
        raise InputError(f"{path} is missing.") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}).") from None


def _write(file: BinaryIO, rest: memoryview) -> None:
    while rest:
        rest = rest[file.write(rest) :]  # one write may take only a part


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _describe(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON that says where each tensor of a nested value is; puts them into `tensors`."""
    inside = f"{name}/" if name else ""
    if isinstance(value, torch.Tensor):
        assert name not in tensors, name
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        assert all(type(key) in (str, int) for key in value), name
        return {"dict": [[key, _describe(item, f"{inside}{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_describe(item, f"{inside}{i}", tensors) for i, item in enumerate(value)]}
    assert value is None or isinstance(value, bool | int | float | str), f"{name} is a {type(value).__name__}"
    return value


def _restore(described: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _restore(item, tensors) for key, item in content}
    items = [_restore(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
