"""Images that a LeRobot dataset keeps in its Parquet files, as PNG or JPEG files in a column."""

from __future__ import annotations

import io
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from atlas.data.lerobot.pages import BinaryColumn, UnreadablePage
from atlas.errors import InputError, first_line

logger = logging.getLogger(__name__)

_OPEN_FILES = 32
_COLUMNS_A_FILE = 256  # row groups whose pages are known; finding them anew costs less than a millisecond


class ParquetImages:
    """Decodes single images out of Parquet files, of which the last used ones stay open.

    Files are read at given places and never from where another reader stopped, so that forked processes may share them.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[Path, _File] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {"_files": OrderedDict()}

    def read(self, path: Path, key: str, rows: Sequence[int]) -> np.ndarray:
        """uint8 [n, H, W, 3]: the images of some rows of a file. Raises InputError that names file, key and row."""
        if path not in self._files:
            self._files[path] = _File(path)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        encoded = self._files[path].read(key, rows)
        images = [_decode(data, path, key, row) for data, row in zip(encoded, rows, strict=True)]
        if len({image.shape for image in images}) > 1:
            raise InputError(f"{path}: the images '{key}' of rows {list(rows)} are not of one size.")
        return np.stack(images)

    def close(self) -> None:
        """Close this process's files; they open again when needed."""
        while self._files:
            self._files.popitem()[1].close()


class _File:
    """A Parquet file that is open: where its row groups begin, and what is known of their pages."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._metadata = pq.read_metadata(path)
            self._descriptor = os.open(path, os.O_RDONLY)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} cannot be read as Parquet ({first_line(error)}); fetch it again.") from None
        groups = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        self._ends = np.cumsum(groups)
        self._places = {self._metadata.schema.column(i).path: i for i in range(self._metadata.num_columns)}
        self._columns: OrderedDict[tuple[int, str], BinaryColumn] = OrderedDict()
        self._whole: tuple[tuple[int, str], list[bytes | None]] | None = None  # the last row group read as a whole

    def read(self, key: str, rows: Sequence[int]) -> list[bytes | None]:
        """The column's values in some rows."""
        if max(rows) >= self._metadata.num_rows:
            raise InputError(f"{self._path} has {self._metadata.num_rows} rows, and row {max(rows)} is needed.")
        group_of = np.searchsorted(self._ends, rows, side="right")
        found: dict[int, bytes | None] = {}
        for group in np.unique(group_of).tolist():
            here = [row for row, g in zip(rows, group_of, strict=True) if g == group]
            first = int(self._ends[group]) - self._metadata.row_group(group).num_rows
            found.update(zip(here, self._read_group(group, key, [row - first for row in here]), strict=True))
        return [found[row] for row in rows]

    def close(self) -> None:
        os.close(self._descriptor)

    def _read_group(self, group: int, key: str, rows: Sequence[int]) -> list[bytes | None]:
        if self._whole is not None and self._whole[0] == (group, key):
            return [self._whole[1][row] for row in rows]
        try:
            return self._column(group, key).read(rows)
        except UnreadablePage as error:
            logger.info("%s: '%s' is read by whole row groups, which is slow: %s.", self._path, key, error)
        except OSError as error:
            raise InputError(f"{self._path} cannot be read: {error.strerror}.") from None
        self._whole = (group, key), self._read_whole(group, key)
        return [self._whole[1][row] for row in rows]

    def _column(self, group: int, key: str) -> BinaryColumn:
        if (group, key) not in self._columns:
            place = self._places.get(f"{key}.bytes", self._places.get(key))
            if place is None:
                raise InputError(f"{self._path} has no column of images '{key}', which meta/info.json has.")
            self._columns[group, key] = BinaryColumn(self._descriptor, self._metadata, group, place)
            if len(self._columns) > _COLUMNS_A_FILE:
                self._columns.popitem(last=False)
        self._columns.move_to_end((group, key))
        return self._columns[group, key]

    def _read_whole(self, group: int, key: str) -> list[bytes | None]:
        try:
            column = pq.ParquetFile(self._path).read_row_group(group, columns=[key]).column(key)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{self._path}: '{key}' cannot be read ({first_line(error)}); fetch the file again."
            ) from None
        values = column.to_pylist()
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
