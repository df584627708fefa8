"""Images that a LeRobot dataset keeps in its Parquet files, as PNG or JPEG files in a column."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from atlas.data.latest import Latest
from atlas.data.lerobot.pages import BinaryColumn, UnreadablePage
from atlas.errors import InputError, first_line

logger = logging.getLogger(__name__)

_OPEN_FILES = 64
_KNOWN_GROUPS = 8192  # row groups whose pages are known, some kilobytes each; to look through one takes milliseconds

_Part = tuple[Path, int, str]  # a file, a row group of it, and a column


class ParquetImages:
    """Decodes single images out of Parquet files. The last used files stay open, and what is known of their pages.

    Files are read at given places and never from where another reader stopped, so that forked processes may share them.
    """

    def __init__(self) -> None:
        self._files: Latest[Path, int] = Latest(_OPEN_FILES, os.close)
        self._group_ends: Latest[Path, np.ndarray] = Latest(_KNOWN_GROUPS)  # the row after each row group
        self._columns: Latest[_Part, BinaryColumn] = Latest(_KNOWN_GROUPS)
        self._whole: Latest[_Part, list[bytes | None]] = Latest(1)  # of pages that cannot be read in part

    def __reduce__(self) -> tuple[type[ParquetImages], tuple[()]]:
        return ParquetImages, ()  # another process opens its own

    def read(self, path: Path, key: str, rows: Sequence[int]) -> list[np.ndarray]:
        """The images of some rows of a file, uint8 [H, W, 3], all of one size. Raises InputError that names file, key
        and row."""
        ends = self._group_ends.get(path, lambda: _group_ends(_metadata(path)))
        if max(rows) >= ends[-1]:
            raise InputError(f"{path} has {ends[-1]} rows, and row {max(rows)} is needed.")
        group_of = np.searchsorted(ends, rows, side="right")
        found: dict[int, bytes | None] = {}
        for group in np.unique(group_of).tolist():
            here = [row for row, g in zip(rows, group_of, strict=True) if g == group]
            first = int(ends[group - 1]) if group else 0
            found.update(zip(here, self._values((path, group, key), [row - first for row in here]), strict=True))
        images = {row: _decode(data, path, key, row) for row, data in found.items()}
        if len({image.shape for image in images.values()}) > 1:
            raise InputError(f"{path}: the images '{key}' of rows {list(rows)} are not of one size.")
        return [images[row] for row in rows]

    def close(self) -> None:
        """Close this process's files; they open again when needed."""
        self._files.clear()

    def _values(self, part: _Part, rows: Sequence[int]) -> list[bytes | None]:
        """Some rows of a column of a row group."""
        path, group, key = part
        try:
            file = self._files.get(path, lambda: os.open(path, os.O_RDONLY))
            return self._columns.get(part, lambda: _column(file, part)).read(file, rows)
        except UnreadablePage as error:
            logger.info("%s: '%s' is read by whole row groups, which is slow: %s.", path, key, error)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from None
        whole = self._whole.get(part, lambda: _whole_column(part))
        return [whole[row] for row in rows]


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet ({first_line(error)}); fetch it again.") from None


def _group_ends(metadata: pq.FileMetaData) -> np.ndarray:
    return np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])


def _column(file: int, part: _Part) -> BinaryColumn:
    path, group, key = part
    metadata = _metadata(path)
    places = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    place = places.get(f"{key}.bytes", places.get(key))
    if place is None:
        raise InputError(f"{path} has no column of images '{key}', which meta/info.json has.")
    return BinaryColumn(file, metadata, group, place)


def _whole_column(part: _Part) -> list[bytes | None]:
    path, group, key = part
    try:
        values = pq.ParquetFile(path).read_row_group(group, columns=[key]).column(key).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: '{key}' cannot be read ({first_line(error)}); fetch the file again.") from None
    return [value.get("bytes") if isinstance(value, dict) else value for value in values]


def _decode(data: bytes | None, path: Path, key: str, row: int) -> np.ndarray:
    """uint8 [H, W, 3]."""
    if not data:
        raise InputError(f"{path}: '{key}' has no image in row {row}; the dataset must have its images in the files.")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
        raise InputError(f"{path}: the image '{key}' in row {row} is damaged ({first_line(error)}).") from None
