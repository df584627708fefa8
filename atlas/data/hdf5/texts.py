"""Texts in HDF5 files that others wrote: attributes and lists of names."""

from __future__ import annotations

import io
from typing import Any

import h5py

from atlas.data.hdf5.opening import check_size, readable
from atlas.errors import InputError

_LARGEST = 64 * 2**20  # bytes of an attribute, of a list of names, or of many texts stored together


def attribute_in(group: h5py.Group, name: str, where: str) -> Any:
    """An attribute of a group; None if it has none of that name. Raises InputError."""
    with readable(f"{where}, the attribute '{name}'"):
        if name not in group.attrs:
            return None
        found = group.attrs.get_id(name)
        if found.get_storage_size() > _LARGEST:
            raise InputError(f"{where}: the attribute '{name}' has {found.get_storage_size():,} bytes.")
        if found.get_type().get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
            return group.attrs[name]
        with h5py.File(_HeapsWatched(group.file.filename), "r") as file:
            return file[group.name].attrs[name]


def texts_in(stored: h5py.Dataset, where: str) -> list[str]:
    """A dataset that is a list of texts. Raises InputError."""
    with readable(where):
        if stored.dtype.kind not in "SO" or stored.ndim != 1:
            raise InputError(f"{where} is not a list of texts.")
        check_size(stored, stored.shape[0] * stored.dtype.itemsize, _LARGEST, where)
        with h5py.File(_HeapsWatched(stored.file.filename), "r") as file:
            values = file[stored.name][()].tolist()
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


class _HeapsWatched(io.FileIO):
    """A file from which HDF5 reads texts of any length. These lie in heaps of a kind (`GCOL`) in which HDF5 loops for
    ever if one is damaged in a certain way, so each is checked before HDF5 gets it."""

    def readinto(self, buffer: Any) -> int | None:
        place = self.tell()
        count = super().readinto(buffer)
        if bytes(memoryview(buffer)[:4]) == b"GCOL":
            self._check(place)
            self.seek(place + (count or 0))
        return count

    def _check(self, place: int) -> None:
        """Raises OSError where an object of the heap at `place` would never end."""
        self.seek(place + 8)
        size = int.from_bytes(self.read(8) or b"", "little")
        if size > _LARGEST:
            raise OSError(f"a heap of texts has {size:,} bytes")
        self.seek(place)
        heap = self.read(size) or b""
        at = 16
        while at + 16 <= len(heap):
            number = int.from_bytes(heap[at : at + 2], "little")
            length = int.from_bytes(heap[at + 8 : at + 16], "little")
            step = 16 + -(-length // 8) * 8 if number else length  # number 0 is free space, including its header
            if step == 0:
                raise OSError("a heap of texts has an object without an end")
            at += step
