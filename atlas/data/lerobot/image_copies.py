"""Images of Parquet files, copied once to where single images can be read fast.

Images are needed in random order, but a Parquet file is read by row groups, which are often whole episodes. So each
column of images is copied as stored into a file of Arrow's own format in the cache, and mapped into memory from there.
The copy takes as much disk space as the images in the dataset.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import itertools
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from atlas.data.lerobot.tables import open_parquet, readable_parquet
from atlas.errors import InputError
from atlas.system.files import atomic_path, sync
from atlas.system.paths import cache_root
from atlas.system.progress import progress_bar

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP")  # allowed formats; Pillow knows many more, some of which start programs
_SCHEMA = pa.schema({"image": pa.large_binary(), "height": pa.int32(), "width": pa.int32()})
_FORMAT = 1  # of the copies; part of their names
_AT_ONCE = 64  # images copied together
_LOCKS = 16  # lock files that keep two processes from making the same copy
_SAID_FROM = 16 * 2**20  # bytes; less is copied too fast to mention


@dataclass(frozen=True)
class ImageCopy:
    """The images of one column of one file, by row."""

    images: pa.ChunkedArray  # of bytes, mapped into memory; null if there is no image
    sizes: np.ndarray  # int64 [rows, 2], height and width; 0 if there is no image, or it is damaged

    def __len__(self) -> int:
        return len(self.sizes)


def open_copy(path: Path, key: str) -> ImageCopy:
    """The copy of a file's column, created if there is none. Raises InputError that names the file."""
    place = _place(path, key)
    for _ in range(2):
        if not place.is_file():
            _make(path, key, place)
        try:
            return _mapped(place)
        except (OSError, pa.ArrowException, ValueError, LookupError):
            logger.warning("%s was damaged, and is made again.", place)
            place.unlink(missing_ok=True)
    raise InputError(f"{place} cannot be read; set ATLAS_CACHE_DIR to another folder.")


def copy_images(root: Path, files: Sequence[str], keys: Sequence[str]) -> None:
    """Make the missing copies of a dataset's columns, after printing how much space they take and where.

    Raises InputError if there is not enough space, or a file is damaged.
    """
    missing = [(root / name, key) for name in files for key in keys if not _place(root / name, key).is_file()]
    needed = sum(
        _bytes(path, [key for _, key in its]) for path, its in itertools.groupby(missing, lambda each: each[0])
    )
    if not needed:
        return
    folder = _folder()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"{root}: its images, {_shown(needed)}, are copied to where single ones can be read fast, but {there} has "
            f"{_shown(free)} free. Set ATLAS_CACHE_DIR to a folder with room, or make them videos (atlas data convert)."
        )
    shown = needed >= _SAID_FROM
    if shown:  # on stderr like a progress bar: a run has no log yet
        why = "copied once to where single ones can be read fast"
        print(f"The images of {root.name} are {why}: {_shown(needed)} in {folder}.", file=sys.stderr)
    with progress_bar(f"Copying images of {root.name}" if shown else None, len(missing)) as advance:
        for path, key in missing:
            _make(path, key, _place(path, key))
            advance(1)


def sizes_in(path: Path, key: str) -> np.ndarray:
    """int64 [rows, 2]: height and width of all images of a column; 0 if there is none, or it is damaged.

    Nothing is copied for it. Raises InputError that names the file.
    """
    if _place(path, key).is_file():
        return open_copy(path, key).sizes
    with readable_parquet(path):
        sizes = [image_size(image) for images in _batches(path, key) for image in images.to_pylist()]
        return np.array(sizes, np.int64).reshape(-1, 2)


def image_size(data: bytes | None) -> tuple[int, int]:
    """Height and width from an image's header; 0, 0 if there is none."""
    if not data:
        return 0, 0
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except Exception:  # Pillow raises a dozen kinds of errors for damaged images
        return 0, 0


def _shown(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _folder() -> Path:
    return cache_root() / "lerobot" / "images"


def _place(path: Path, key: str) -> Path:
    """Return where the copy of a file's column is; the name is derived from the file and its state."""
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    source, state = (str(path.resolve()), key), (_FORMAT, stat.st_size, stat.st_mtime_ns)
    names = (hashlib.sha256(repr(part).encode("utf-8", "surrogateescape")).hexdigest()[:16] for part in (source, state))
    return _folder() / f"{'-'.join(names)}.arrow"


def _mapped(place: Path) -> ImageCopy:
    table = pa.ipc.open_file(pa.memory_map(str(place))).read_all()
    if not table.schema.equals(_SCHEMA):
        raise ValueError("its columns are others")
    table.validate(full=True)  # reads only where each image begins; a place outside the file would end the process
    if table.column("height").null_count or table.column("width").null_count:
        raise ValueError("sizes are missing")
    sizes = np.stack([table.column(name).to_numpy() for name in ("height", "width")], axis=1)
    return ImageCopy(table.column("image"), sizes.astype(np.int64))


def _make(path: Path, key: str, place: Path) -> None:
    """Copy a column, completely or not at all; of several processes one makes it. Raises InputError."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place):
            if place.is_file():
                return
            with atomic_path(place) as partial:
                with partial.open("wb") as sink:
                    _write(path, key, sink)
                sync(partial)
            for old in place.parent.glob(f"{place.stem.split('-')[0]}-*.arrow"):
                if old != place:  # from an earlier state of the file; processes that have it mapped keep it
                    old.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"The images of {path} cannot be copied to {place.parent} ({error.strerror}); set ATLAS_CACHE_DIR to a "
            "writable folder with enough space."
        ) from None


def _write(path: Path, key: str, sink: Any) -> None:
    with readable_parquet(path), pa.ipc.new_file(sink, _SCHEMA) as writer:
        for images in _batches(path, key):
            sizes = np.array([image_size(image) for image in images.to_pylist()], np.int32).reshape(-1, 2)
            writer.write_batch(pa.record_batch([images, *map(pa.array, sizes.T.copy())], schema=_SCHEMA))


def _batches(path: Path, key: str) -> Iterator[pa.LargeBinaryArray]:
    """The images of a column, some at a time; use it within `readable_parquet`."""
    file = open_parquet(path, pre_buffer=False)
    for batch in file.iter_batches(_AT_ONCE, columns=[_column(file, path, key)], use_threads=False):
        column = batch.column(0)
        values = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        yield values.cast(pa.large_binary())


def _bytes(path: Path, keys: Sequence[str]) -> int:
    """The uncompressed size of some columns, according to the file."""
    with readable_parquet(path):
        file = open_parquet(path)
        names, metadata = {_column(file, path, key) for key in keys}, file.metadata
        places = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path in names]
        groups = (metadata.row_group(i).column(place) for i in range(metadata.num_row_groups) for place in places)
        return sum(max(0, group.total_uncompressed_size) for group in groups)


def _column(file: Any, path: Path, key: str) -> str:
    """Parquet's name for a column of images."""
    schema = file.schema_arrow
    kind: Any = schema.field(key).type if schema.names.count(key) == 1 else pa.null()
    is_struct = pa.types.is_struct(kind)
    content = kind.field("bytes").type if is_struct and kind.get_field_index("bytes") >= 0 else kind
    known = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    if not any(is_kind(content) for is_kind in known):
        raise InputError(f"{path} has no column of images '{key}', which meta/info.json has.")
    return f"{key}.bytes" if is_struct else key


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Wait for others that make this copy. The lock ends with the process that holds it."""
    number = int(place.stem[:8], 16) % _LOCKS
    with open(place.parent / f".lock-{number}", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have none: then a copy is made twice, which is harmless
            logger.info("%s cannot be locked: %s.", file.name, error.strerror)
        yield
