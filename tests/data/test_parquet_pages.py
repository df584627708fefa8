"""Single values of a Parquet column: what Arrow reads, however the file was written."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atlas.data.lerobot.images import ParquetImages
from atlas.data.lerobot.pages import BinaryColumn, UnreadablePage
from atlas.data.lerobot.snappy import BLOCK, block_starts, stream_of
from tests.data.lerobot_folders import FIXTURES, IMAGE

KEY = "observation.images.image"


def some_values(count: int, largest: int, gaps: bool = False, repeats: bool = False) -> list[bytes | None]:
    rng = np.random.default_rng(0)
    values: list[bytes | None] = [rng.bytes(int(rng.integers(0, largest))) for _ in range(count)]
    if gaps:
        values = [None if rng.random() < 0.3 else value for value in values]
    if repeats:
        values = [b"the same" if rng.random() < 0.5 else value for value in values]
    return values


def write(path: Path, values: list[bytes | None], **settings: Any) -> Path:
    column = pa.array(
        [{"bytes": v, "path": "x.png"} for v in values], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    pq.write_table(pa.table({"image": column}), path, **settings)
    return path


class Group:
    """The first column's part in a row group."""

    def __init__(self, descriptor: int, metadata: pq.FileMetaData, group: int) -> None:
        self._descriptor, self._column = descriptor, BinaryColumn(descriptor, metadata, group, 0)

    def read(self, rows: Sequence[int]) -> list[bytes | None]:
        return self._column.read(self._descriptor, rows)


@contextmanager
def columns(path: Path) -> Iterator[list[Group]]:
    metadata, descriptor = pq.read_metadata(path), os.open(path, os.O_RDONLY)
    try:
        yield [Group(descriptor, metadata, group) for group in range(metadata.num_row_groups)]
    finally:
        os.close(descriptor)


LAYOUTS = list(
    itertools.product(["none", "snappy", "zstd", "gzip", "lz4"], ["1.0", "2.0"], [True, False], [True, False])
)


@pytest.mark.parametrize(("codec", "version", "dictionary", "gaps"), LAYOUTS)
def test_values_are_those_that_were_written(
    codec: str, version: str, dictionary: bool, gaps: bool, tmp_path: Path
) -> None:
    values = some_values(90, 5000, gaps, repeats=dictionary)
    settings: dict[str, Any] = {"data_page_version": version, "compression": codec, "use_dictionary": dictionary}
    path = write(
        tmp_path / "x", values, row_group_size=40, data_page_size=9000, dictionary_pagesize_limit=20000, **settings
    )

    with columns(path) as groups:
        rows = np.random.default_rng(1).permutation(40).tolist()
        assert groups[0].read(rows) == [values[row] for row in rows]
        assert groups[1].read([3, 3, 0]) == [values[43], values[43], values[40]]
        assert groups[2].read(range(10)) == values[80:]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_large_values_are_read_without_the_rest_of_their_page(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As LeRobot writes images: hundreds of kilobytes each, and a whole episode in one page."""
    values = some_values(30, 300_000)
    path = write(tmp_path / "x", values, data_page_version=version)
    read: list[int] = []

    with columns(path) as (group,):
        assert group.read(range(30)) == values
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda f, size, at: read.append(size) or pread(f, size, at))
        assert group.read([17, 4]) == [values[17], values[4]]

    assert sum(read) < len(values[17] or b"") + len(values[4] or b"") + 4 * BLOCK


def test_data_that_compresses_well_is_read_too(tmp_path: Path) -> None:
    values: list[bytes | None] = [bytes([i]) * 200_000 + os.urandom(50) * 300 for i in range(20)]
    path = write(tmp_path / "x", values, use_dictionary=False)

    with columns(path) as (group,):
        assert group.read([19, 0, 7]) == [values[19], values[0], values[7]]


def test_blocks_of_a_stream_are_streams_of_their_own() -> None:
    content = np.random.default_rng(0).bytes(100_000) + b"again and again " * 20_000
    stream = memoryview(pa.compress(content, codec="snappy", asbytes=True))

    starts = block_starts(stream)

    assert starts is not None and len(starts) == -(-len(content) // BLOCK) + 1
    for first in range(len(starts) - 1):
        part = content[first * BLOCK : (first + 2) * BLOCK]
        alone = stream_of(bytes(stream[starts[first] : starts[min(first + 2, len(starts) - 1)]]), len(part))
        assert pa.decompress(alone, decompressed_size=len(part), codec="snappy", asbytes=True) == part


def test_an_encoding_that_is_not_known_is_read_by_arrow(tmp_path: Path) -> None:
    table = pq.read_table(FIXTURES / IMAGE / "data/chunk-000/file-000.parquet", columns=[KEY])
    encoding = {f"{KEY}.bytes": "DELTA_LENGTH_BYTE_ARRAY"}
    pq.write_table(table, tmp_path / "x", use_dictionary=False, column_encoding=encoding, row_group_size=9)

    with pytest.raises(UnreadablePage, match="encoding"), columns(tmp_path / "x"):
        pass
    plain = ParquetImages().read(FIXTURES / IMAGE / "data/chunk-000/file-000.parquet", KEY, [8, 20, 9, 8])
    np.testing.assert_array_equal(ParquetImages().read(tmp_path / "x", KEY, [8, 20, 9, 8]), plain)


def test_a_page_that_is_damaged_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "x", some_values(30, 3000), use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:30] = bytes(26)  # the first page's header

    path.write_bytes(content)

    with pytest.raises(UnreadablePage), columns(path):
        pass
