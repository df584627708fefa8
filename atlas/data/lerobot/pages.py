"""Single values of a binary column of a Parquet file, without reading the others.

An image is wanted at random, and the row group around it is a whole episode of images, which are often one page: what
Arrow reads at once. Here the pages of a row group are looked through once, and then only the wanted bytes are read. All
is by the format's own description (https://parquet.apache.org/docs/file-format): a page's header is in Thrift's compact
protocol, and its body has definition levels and then the values, or their numbers in the column's dictionary page.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atlas.data.lerobot.snappy import BLOCK, block_starts, stream_of

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # kinds of pages
_PLAIN, _DICTIONARY_ENCODINGS = 0, (2, 8)
_CODECS = {"UNCOMPRESSED": None, "LZ4": "lz4_raw"}  # where Arrow's name is another one than in lower case
_HEADER_BYTES = 4096  # more than nearly all have
_LARGEST_HEADER = 1 << 24


class UnreadablePage(ValueError):
    """The pages are of a kind that is not read here, or damaged."""


class _Page(NamedTuple):
    """What a page's header says."""

    kind: int
    body: int  # where in the file
    compressed: int  # bytes
    uncompressed: int
    values: int
    encoding: int
    levels: int = 0  # bytes of levels before the values, of the second kind of data page, which are not compressed
    values_compressed: bool = True


@dataclass(frozen=True)
class _Section:
    """A part of the file that is compressed as one, and where its blocks are if they can be read alone."""

    position: int
    compressed: int
    uncompressed: int
    codec: str | None
    blocks: np.ndarray | None

    def read(self, descriptor: int, start: int, end: int) -> bytes:
        """Some of what it holds, before compression."""
        if self.codec is None:
            return bytes(_pread(descriptor, self.position + start, end - start))
        if self.blocks is None:
            raw = _pread(descriptor, self.position, self.compressed)
            return bytes(_decompress(raw, self.uncompressed, self.codec)[start:end])
        first, last = start // BLOCK, -(-end // BLOCK)
        begin = int(self.blocks[first])
        raw = _pread(descriptor, self.position + begin, int(self.blocks[last]) - begin)
        length = min(last * BLOCK, self.uncompressed) - first * BLOCK
        found = _decompress(stream_of(raw, length), length, self.codec)
        return bytes(found[start - first * BLOCK : end - first * BLOCK])


@dataclass(frozen=True)
class _Values:
    """Where the values of a page are."""

    section: _Section | None  # None: in the dictionary
    starts: np.ndarray  # int64 [values], in the section; or their numbers in the dictionary
    sizes: np.ndarray  # int64 [values]
    defined: np.ndarray | None  # bool [rows], None for all; the n-th row that is defined has the n-th value


class BinaryColumn:
    """A column's part in one row group. Its pages are looked through when they are first needed."""

    def __init__(self, descriptor: int, metadata: pq.FileMetaData, group: int, column: int) -> None:
        """descriptor: of the open file; it is not kept. Raises UnreadablePage, OSError."""
        chunk = metadata.row_group(group).column(column)
        schema = metadata.schema.column(column)
        if schema.max_repetition_level:
            raise UnreadablePage("it holds lists")
        self._codec = _CODECS.get(chunk.compression, chunk.compression.lower())
        self._most_defined = schema.max_definition_level
        start = chunk.data_page_offset
        if chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        pages = _headers(descriptor, start, start + chunk.total_compressed_size)
        self._dictionary_page = next((page for page in pages if page.kind == _DICTIONARY), None)
        self._pages = [page for page in pages if page.kind != _DICTIONARY]
        self._ends = np.cumsum([page.values for page in self._pages])
        self._seen: dict[int, _Values] = {}
        self._dictionary: _Values | None = None
        if not len(self._ends) or self._ends[-1] != metadata.row_group(group).num_rows:
            raise UnreadablePage("its pages do not add up to its rows")

    def read(self, descriptor: int, rows: Sequence[int]) -> list[bytes | None]:
        """The values of some rows of the row group, None where there is none. Raises UnreadablePage, OSError.

        descriptor: of the open file.
        """
        return [self._read(descriptor, row) for row in rows]

    def _read(self, descriptor: int, row: int) -> bytes | None:
        number = int(np.searchsorted(self._ends, row, side="right"))
        if number not in self._seen:
            self._seen[number] = self._look_through(descriptor, self._pages[number])
        page = self._seen[number]
        place = row - (int(self._ends[number]) - self._pages[number].values)
        if page.defined is not None:
            if not page.defined[place]:
                return None
            place = int(page.defined[:place].sum())
        if page.section is None:
            page, place = self._entries(descriptor), int(page.starts[place])
        assert page.section is not None
        start = int(page.starts[place])
        return page.section.read(descriptor, start, start + int(page.sizes[place]))

    def _entries(self, descriptor: int) -> _Values:
        """The values of the dictionary."""
        if self._dictionary is None:
            page = self._dictionary_page
            if page is None:
                raise UnreadablePage("its dictionary is missing")
            section, content = _section(descriptor, page.body, page.compressed, page.uncompressed, self._codec)
            self._dictionary = _Values(section, *_plain(content, 0, page.values), defined=None)
        return self._dictionary

    def _look_through(self, descriptor: int, page: _Page) -> _Values:
        """Where a data page's values are. It is read as a whole, once."""
        if page.kind == _DATA_V2:
            codec = self._codec if page.values_compressed else None
            levels: bytes | memoryview = _pread(descriptor, page.body, page.levels)
            sizes = page.compressed - page.levels, page.uncompressed - page.levels
            section, content = _section(descriptor, page.body + page.levels, *sizes, codec)
            at = 0
        else:
            section, content = _section(descriptor, page.body, page.compressed, page.uncompressed, self._codec)
            levels, at = content[:0], 0
            if self._most_defined:
                at = 4 + int.from_bytes(content[:4], "little")
                levels = content[4:at]
        defined = None
        if self._most_defined:
            defined = _hybrid(levels, self._most_defined.bit_length(), page.values) == self._most_defined
            defined = None if defined.all() else defined
        count = page.values if defined is None else int(defined.sum())
        if page.encoding in _DICTIONARY_ENCODINGS:
            numbers = _hybrid(content[at + 1 :], content[at], count) if count else np.zeros(0, np.int64)
            return _Values(None, numbers, np.zeros(0, np.int64), defined)
        return _Values(section, *_plain(content, at, count), defined)


def _section(
    descriptor: int, position: int, compressed: int, size: int, codec: str | None
) -> tuple[_Section, memoryview]:
    """A part of the file, and what it holds."""
    raw = memoryview(_pread(descriptor, position, compressed))
    blocks = block_starts(raw) if codec == "snappy" else None
    section = _Section(position, compressed, size, codec, blocks)
    return section, raw if codec is None else _decompress(raw, size, codec)


def _headers(descriptor: int, position: int, end: int) -> list[_Page]:
    pages = []
    while position < end:
        page = _header(descriptor, position)
        position = page.body + page.compressed
        if page.kind in (_DATA, _DATA_V2, _DICTIONARY):
            pages.append(page)
    return pages


def _header(descriptor: int, position: int) -> _Page:
    size = _HEADER_BYTES
    while True:
        data = os.pread(descriptor, size, position)
        try:
            fields, length = _Compact(data).struct()
            break
        except IndexError:  # it goes on: statistics may hold whole values
            if len(data) < size or size > _LARGEST_HEADER:
                raise UnreadablePage("a page's header is cut off") from None
            size *= 8
    try:
        kind, uncompressed, compressed = fields[1], fields[2], fields[3]
        common = (kind, position + length, compressed, uncompressed)
        if kind == _DATA_V2:
            v2 = fields[8]
            return _Page(*common, v2[1], _known(v2[4]), v2[5] + v2[6], v2.get(7, True))
        if kind == _DATA:
            return _Page(*common, fields[5][1], _known(fields[5][2]))
        return _Page(*common, fields[7][1] if kind == _DICTIONARY else 0, _PLAIN)
    except (KeyError, TypeError):
        raise UnreadablePage("a page's header is damaged") from None


def _known(encoding: int) -> int:
    if encoding != _PLAIN and encoding not in _DICTIONARY_ENCODINGS:
        raise UnreadablePage(f"its values are in encoding {encoding}")
    return encoding


def _pread(descriptor: int, position: int, size: int) -> bytes:
    data = os.pread(descriptor, size, position)
    if len(data) < size:
        raise UnreadablePage("the file ends within a page")
    return data


def _decompress(data: bytes | memoryview, size: int, codec: str) -> memoryview:
    try:
        return memoryview(pa.decompress(data, decompressed_size=size, codec=codec))
    except (OSError, ValueError) as error:  # Arrow's errors are of these kinds
        raise UnreadablePage(str(error)) from None


def _plain(content: memoryview, at: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each of the values is, and its size: each has its size before it."""
    starts, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for i in range(count):
        if at + 4 > len(content):
            raise UnreadablePage("a page ends within a value")
        (size,) = struct.unpack_from("<I", content, at)
        starts[i], sizes[i] = at + 4, size
        at += 4 + size
    if at > len(content):
        raise UnreadablePage("a page ends within a value")
    return starts, sizes


def _hybrid(data: bytes | memoryview, width: int, count: int) -> np.ndarray:
    """Small numbers, int64 [count], of Parquet's hybrid of repeated and bit-packed ones."""
    runs: list[np.ndarray] = []
    have, position = 0, 0
    while have < count:
        header, position = _varint(data, position)
        if header & 1:  # groups of eight numbers of `width` bits
            numbers, size = (header >> 1) * 8, (header >> 1) * width
            bits = np.unpackbits(np.frombuffer(data[position : position + size], np.uint8), bitorder="little")
            if len(bits) < numbers * width:
                raise UnreadablePage("a page's levels are cut off")
            run = bits.reshape(numbers, width).astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))
        else:
            size = (width + 7) // 8
            run = np.full(header >> 1, int.from_bytes(data[position : position + size], "little"), np.int64)
            numbers = len(run)
        if not numbers:
            raise UnreadablePage("a page's levels are damaged")
        runs.append(run)
        have, position = have + numbers, position + size
    return np.concatenate(runs)[:count] if runs else np.zeros(0, np.int64)


def _varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise UnreadablePage("a page's levels are cut off")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position


class _Compact:
    """Reads Thrift's compact protocol: structs as {field's number: value}. IndexError: the data ends too early."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self) -> tuple[dict[int, Any], int]:
        """The struct at the beginning, and how many bytes it has."""
        return self._struct(), self._at

    def _struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while byte := self._byte():
            number = number + (byte >> 4) if byte >> 4 else self._integer()
            fields[number] = self._value(byte & 0x0F)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._unsigned())
        if kind in (9, 10):
            byte = self._byte()
            count = byte >> 4 if byte >> 4 < 15 else self._unsigned()
            return [self._value(byte & 0x0F) for _ in range(count)]
        if kind == 12:
            return self._struct()
        raise UnreadablePage(f"a page's header holds a field of kind {kind}")

    def _byte(self) -> int:
        byte = self._data[self._at]
        self._at += 1
        return byte

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise IndexError
