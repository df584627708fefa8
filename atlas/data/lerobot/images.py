"""Images that a LeRobot dataset stores in its Parquet files, as PNG or JPEG files in a column."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from atlas.data.caches.lru import LRUCache
from atlas.data.lerobot.image_copies import FORMATS, ImageCopy, open_copy
from atlas.errors import InputError, first_line

_OPEN_FILES = 128


class ParquetImages:
    """Decodes single images of Parquet files from their copies. The most recently used ones stay mapped into memory,
    which forked processes may share."""

    def __init__(self) -> None:
        self._copies: LRUCache[tuple[Path, str], ImageCopy] = LRUCache(_OPEN_FILES)

    def __reduce__(self) -> tuple[type[ParquetImages], tuple[()]]:
        return ParquetImages, ()  # another process opens its own

    def sizes(self, path: Path, key: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 [n, 2]: height and width of images from their headers; 0 if there is none, or it is damaged.

        Raises InputError that names file and key.
        """
        return np.asarray(self._copy(path, key, int(np.max(rows))).sizes[rows])

    def read(self, path: Path, key: str, rows: Sequence[int]) -> list[np.ndarray]:
        """The images of some rows of a file, uint8 [H, W, 3]. Raises InputError that names file, key and row."""
        images = self._copy(path, key, max(rows)).images
        found = {row: _decode(images[row], path, key, row) for row in dict.fromkeys(rows)}
        return [found[row] for row in rows]

    def _copy(self, path: Path, key: str, last: int) -> ImageCopy:
        copy = self._copies.get((path, key), lambda: open_copy(path, key))
        if last >= len(copy):
            raise InputError(f"{path} has {len(copy)} rows, but row {last} is needed.")
        return copy


def _decode(data: pa.Scalar, path: Path, key: str, row: int) -> np.ndarray:
    """uint8 [H, W, 3]."""
    content = data.as_py()
    if not content:
        raise InputError(f"{path}: '{key}' has no image in row {row}; the dataset must have its images in the files.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # Pillow raises a dozen kinds of errors for damaged images
        raise InputError(f"{path}: the image '{key}' in row {row} is damaged ({first_line(error)}).") from None
