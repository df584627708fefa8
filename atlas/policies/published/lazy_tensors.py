"""Reads a safetensors file one tensor at a time, each into its own memory."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from atlas.errors import InputError
from atlas.system.documents import parse_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's type, shape and place in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # offset in the file, bytes
    size: int  # bytes


class TensorFile:
    """An open safetensors file, not mapped into memory: a mapping's pages would count as this process's memory.

    Raises InputError for a file that is missing or damaged, or holds a number type that Atlas does not have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as checked:  # the library checks the header against the file
                self.metadata: Mapping[str, str] = checked.metadata() or {}
            self._file: BinaryIO = path.open("rb", buffering=0)
            (length,) = struct.unpack("<Q", self._file.read(8))
            header = parse_json(self._file.read(length))
            kinds = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
            if unknown := sorted(kinds - set(DTYPES)):
                raise InputError(f"{path} holds numbers of type {', '.join(unknown)}; Atlas reads {', '.join(DTYPES)}.")
            self.tensors = {
                name: _stored(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"
            }
        except FileNotFoundError:
            raise InputError(f"{path} is missing.") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise InputError(f"{path} cannot be read as safetensors; it may be truncated ({error}).") from None

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """A tensor in its stored type, on the CPU. Raises InputError where the file ends within it."""
        stored = self.tensors[name]
        values = torch.empty(stored.shape, dtype=stored.dtype)
        if stored.size:
            self._file.seek(stored.begin)
            room = memoryview(values.reshape(-1).view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]
            while room:
                count = self._file.readinto(room)  # type: ignore[attr-defined]
                if not count:
                    raise InputError(f"{self.path} ends within '{name}'; it is truncated.")
                room = room[count:]
        return values


def _stored(entry: Mapping[str, Any], data: int) -> StoredTensor:
    kind, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    size = math.prod(shape) * kind.itemsize
    if size != end - begin:
        raise ValueError(f"{list(shape)} does not fill {end - begin} bytes")
    return StoredTensor(kind, shape, data + begin, size)
