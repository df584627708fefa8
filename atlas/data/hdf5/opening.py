"""Opening HDF5 files that others wrote, and finding what is in them: nothing outside the file's own folder is read, and
nothing is loaded into memory that the file is too small to hold."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from atlas.errors import InputError, first_line
from atlas.system.paths import inside

_MOST_LINKS = 16  # in a chain; more count as a circle
_LARGEST_NUMBERS = 256 * 2**20  # bytes of one array of an episode's numbers: days of recording
_LARGEST_FRAME = 64 * 2**20  # bytes of one image
_LARGEST_CHUNK = 2**30  # bytes: HDF5 holds a whole chunk in memory to read any part of it
_MOST_CHUNKS = 200_000  # of one dataset: each takes a look-up
_MOST_COMPRESSION = 1100  # a factor: deflate reaches at most 1032
_FREE = 2**20  # bytes that are allowed without justification
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Unavailable(InputError):
    """A file that may be sound but cannot be read now: it is not damaged, and must not be left out."""


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn the many kinds of errors that h5py raises for a damaged file into an InputError that says where."""
    try:
        yield
    except InputError:
        raise
    except (
        *(OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError),
        *(ArithmeticError, MemoryError, NotImplementedError),
    ) as error:
        message = first_line(error)
        raise InputError(f"{where} is damaged ({message}); download or copy it again, or leave it out.") from error


def open_file(path: Path) -> h5py.File:
    """The file, opened for reading. Raises InputError if it is not HDF5 or cut off, and Unavailable if it is in use."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise _why_not(path, error) from None
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise InputError(f"{path} cannot be read as HDF5 ({first_line(error)}).") from None


def _why_not(path: Path, error: OSError) -> InputError:
    message = first_line(error)
    if "unable to lock" in message:
        number = error.errno or int((re.findall(r"errno = (\d+)", message) or ["0"])[0])
        if number in _CANNOT_LOCK:
            return Unavailable(
                f"{path} cannot be locked by its file system, as HDF5 does before it reads ({os.strerror(number)}). "
                "If nothing writes to it, set HDF5_USE_FILE_LOCKING=FALSE."
            )
        return Unavailable(
            f"{path} is in use: {_holders(path)}. Wait for it, or stop it. If nothing writes to the file, for example "
            "after a network file system lost a lock, set HDF5_USE_FILE_LOCKING=FALSE."
        )
    if "already open for write" in message:
        return Unavailable(
            f"{path} is marked as being written to: a program has it open, or ended without closing it. Wait for it; "
            f"if there is none, `h5clear -s {path}` removes the mark."
        )
    if isinstance(error, PermissionError):
        return Unavailable(f"{path} cannot be read: {os.strerror(error.errno or errno.EACCES)}.")
    return InputError(f"{path} cannot be read as HDF5; it may be truncated or not HDF5 at all ({message}).")


def _holders(path: Path) -> str:
    """Name the processes that hold a lock on the file, as far as Linux tells."""
    try:
        inode = path.stat().st_ino
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "another process has locked it"
    numbers = sorted({int(lock[4]) for lock in locks if len(lock) > 5 and lock[5].endswith(f":{inode}")})
    found = [f"{_name(number)} (process {number})" for number in numbers if number > 0]
    return f"{' and '.join(found)} has locked it" if found else "another process, maybe on another machine, locked it"


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return "a program"


def find(parent: h5py.Group, key: str, where: str) -> h5py.Group | h5py.Dataset | None:
    """Find a group's member under a key such as `obs/ee_pos`; None if there is nothing.

    Links within the file, and links to files in its folder, are followed. Raises InputError for all others, and for a
    dataset whose values are stored elsewhere or cannot be what it claims.
    """
    with readable(f"{where}/{key}"):
        try:
            found = _follow(parent, key, f"{where}/{key}", _MOST_LINKS)
        except _NotThere:
            return None
        if isinstance(found, h5py.Dataset):
            found = _check_values(found, f"{where}/{key}", _MOST_LINKS)
        return found


def names_in(group: h5py.Group) -> list[str]:
    """The keys of a group, sorted with numbers in numeric order."""
    return sorted(group, key=lambda name: (natural(name), name))


def leads_elsewhere(file: h5py.File) -> bool:
    """Whether a file has links to other files."""
    return file.id.links.visit(lambda _, info: info.type == h5py.h5l.TYPE_EXTERNAL or None, info=True) is not None


def numbers_in(stored: h5py.Dataset, where: str) -> np.ndarray:
    """All values of a numeric dataset, as they are stored. Raises InputError."""
    with readable(where):
        size = math.prod(stored.shape) if stored.shape is not None else 0
        if stored.dtype.kind not in "fiub" or stored.shape is None:
            raise InputError(f"{where} is of type {stored.dtype}, expected numbers.")
        check_size(stored, size * stored.dtype.itemsize, _LARGEST_NUMBERS, where)
        _check_written(stored, where)
        return np.asarray(stored[()])


def check_size(stored: h5py.Dataset, wanted: int, most: int, where: str) -> None:
    """Raises InputError if `wanted` bytes of a dataset are more than is sensible, or more than its file can hold."""
    held = stored.id.get_storage_size() if wanted > _FREE else wanted
    if wanted > most or wanted > max(_FREE, _MOST_COMPRESSION * held):
        raise InputError(
            f"{where} claims to hold {wanted:,} bytes in shape {stored.shape}, which cannot be true: the file has "
            f"{held:,} bytes for it. It is damaged; download or copy it again, or leave it out."
        )


def check_images(stored: h5py.Dataset, where: str) -> None:
    """Check, without reading them, that the frames of a dataset can be read one at a time. Raises InputError."""
    check_size(stored, math.prod(stored.shape[1:]), _LARGEST_FRAME, where)
    _check_written(stored, where)


def _check_written(stored: h5py.Dataset, where: str) -> None:
    """Refuse datasets that nobody has written to, which HDF5 reads as zeros."""
    if math.prod(stored.shape) and not stored.is_virtual and not stored.id.get_storage_size():
        raise InputError(f"{where} has room for shape {stored.shape}, but nothing was ever written to it.")


def offset_of(stored: h5py.Dataset, file: h5py.File) -> int | None:
    """Return where a uint8 dataset's bytes lie in its file, if they are stored raw and in one piece; otherwise None."""
    if h5py.h5o.get_info(stored.id).fileno != h5py.h5o.get_info(file.id).fileno:
        return None  # behind a link: an offset in another file
    if not any(stored.id.get_type().equal(kind) for kind in (h5py.h5t.STD_U8LE, h5py.h5t.STD_U8BE)):
        return None  # fewer than 8 bits are used
    offset = stored.id.get_offset()  # None if it is chunked, compact, virtual or stored elsewhere
    return None if offset is None else int(offset)


class _NotThere(KeyError):
    """A group does not have this key."""


def _follow(parent: h5py.Group, key: str, where: str, hops: int) -> h5py.Group | h5py.Dataset:
    """Like `find`, but without checking a dataset's values. hops: links that may still be followed."""
    if key.startswith("/"):
        parent = parent.file["/"]
    here: h5py.Group | h5py.Dataset = parent
    for part in key.split("/"):
        if part in ("", "."):
            continue
        if not isinstance(here, h5py.Group):
            raise _NotThere(key)
        here = _step(here, part, where, hops)
    return here


def _step(group: h5py.Group, name: str, where: str, hops: int) -> h5py.Group | h5py.Dataset:
    encoded = name.encode("utf-8", "surrogateescape")
    try:
        kind = group.id.links.get_info(encoded).type
    except (KeyError, RuntimeError):
        if group.id.links.exists(encoded):
            raise
        raise _NotThere(name) from None
    if kind == h5py.h5l.TYPE_HARD:
        return _wrap(h5py.h5o.open(group.id, encoded), where)
    if hops == 0:
        raise InputError(f"{where} is a link that leads in a circle.")
    try:
        if kind == h5py.h5l.TYPE_SOFT:
            return _follow(group, os.fsdecode(group.id.links.get_val(encoded)), where, hops - 1)
        if kind == h5py.h5l.TYPE_EXTERNAL:
            file, target = (os.fsdecode(part) for part in group.id.links.get_val(encoded))
            return _follow(_other_file(group, file, where), target, where, hops - 1)
    except _NotThere as error:
        raise InputError(f"{where} is a link to something that does not exist: {error}.") from None
    raise InputError(f"{where} is a link of a kind that Atlas does not follow.")


def _wrap(found: h5py.h5g.ObjectID, where: str) -> h5py.Group | h5py.Dataset:
    kind = h5py.h5i.get_type(found)
    if kind == h5py.h5i.GROUP:
        return h5py.Group(found)
    if kind == h5py.h5i.DATASET:
        return h5py.Dataset(found)
    raise InputError(f"{where} is neither a group nor a dataset.")


def _other_file(near: h5py.Group | h5py.Dataset, name: str, where: str) -> h5py.Group:
    """The root of another file, in the same folder."""
    path = _beside(near, name, where)
    if path.samefile(near.file.filename):
        return near.file["/"]
    return open_file(path)["/"]


def _beside(near: h5py.Group | h5py.Dataset, name: str, where: str) -> Path:
    """A file that another one refers to, which must be in the same folder."""
    folder = Path(near.file.filename).parent
    path = inside(folder, name, where=f"{where} lies in another file", follow_links=True)
    if not path.is_file():
        raise InputError(f"{where} lies in another file, {path}, which does not exist.")
    return path


def _check_values(stored: h5py.Dataset, where: str, hops: int) -> h5py.Dataset:
    """The dataset, after checking that its values lie in this file or in files of its folder. Raises InputError."""
    made = stored.id.get_create_plist()
    layout = made.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        _check_virtual(stored, where, hops)
    elif layout == h5py.h5d.CHUNKED:
        _check_chunks(stored, made, where)
    elif layout == h5py.h5d.CONTIGUOUS and made.get_external_count():
        return _in_other_files(stored, made, where)
    elif layout == h5py.h5d.CONTIGUOUS:
        offset = stored.id.get_offset()  # None if nothing was ever written
        if offset is not None and offset + _bytes(stored) > h5py.h5i.get_file_id(stored.id).get_filesize():
            raise InputError(f"{where} lies beyond the end of the file, which is damaged.")
    return stored


def _bytes(stored: h5py.Dataset) -> int:
    return math.prod(stored.shape or (0,)) * int(stored.id.get_type().get_size())


def _check_chunks(stored: h5py.Dataset, made: h5py.h5p.PropDCID, where: str) -> None:
    for number in range(made.get_nfilters()):
        code, _, _, name = made.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            raise Unavailable(
                f"{where} is stored with the HDF5 filter '{name.decode(errors='replace')}' ({code}), which is not "
                "installed here. Where the file was made, `h5repack -f GZIP=4` stores it without."
            )
    chunk, shape = stored.chunks, stored.shape
    count = math.prod(-(-length // max(1, part)) for length, part in zip(shape, chunk, strict=True))
    size = math.prod(chunk) * int(stored.id.get_type().get_size())
    if count > _MOST_CHUNKS or size > _LARGEST_CHUNK:
        raise InputError(
            f"{where} is stored in {count:,} chunks of {size:,} bytes, but Atlas reads at most {_MOST_CHUNKS:,} chunks "
            f"of at most {_LARGEST_CHUNK:,}. If the file is not damaged, h5repack can store it differently."
        )


def _in_other_files(stored: h5py.Dataset, made: h5py.h5p.PropDCID, where: str) -> h5py.Dataset:
    """A dataset whose values are bytes in other files, opened so that they are looked for beside this file."""
    there = 0
    for number in range(made.get_external_count()):
        name, offset, size = made.get_external(number)
        path = _beside(stored, os.fsdecode(name), where)
        there += max(0, min(int(size), path.stat().st_size - int(offset)))
    if there < _bytes(stored):
        raise InputError(f"{where} should have {_bytes(stored):,} bytes in other files, but they have {there:,}.")
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")  # otherwise they would be looked for where Atlas was started
    path = h5py.h5i.get_name(stored.id)
    folder, _, name = path.rpartition(b"/")
    group = h5py.h5g.open(stored.file.id, folder or b"/")
    stored.id._close()  # an open dataset would be opened again with its old settings
    return h5py.Dataset(h5py.h5d.open(group, name, access))


def _check_virtual(stored: h5py.Dataset, where: str, hops: int) -> None:
    """Check that the parts of a virtual dataset all exist, in files of the same folder; HDF5 would fill in zeros for
    what is missing."""
    if hops == 0:
        raise InputError(f"{where} is assembled from datasets that are assembled from it.")
    mapped = 0
    for part in stored.virtual_sources():
        if "%" in part.file_name or "%" in part.dset_name:
            raise InputError(f"{where} is assembled from numbered files, which Atlas does not read.")
        root = stored.file["/"] if part.file_name == "." else _other_file(stored, part.file_name, where)
        try:
            source = _follow(root, part.dset_name, where, hops - 1)
        except _NotThere:
            source = None
        if not isinstance(source, h5py.Dataset):
            raise InputError(f"{where} is assembled from '{part.dset_name}' in {part.file_name}, which does not exist.")
        _check_values(source, where, hops - 1)
        _, last = part.src_space.get_select_bounds()
        if source.id.get_create_plist().get_external_count():
            raise InputError(f"{where} is assembled from values that lie in yet other files.")
        if any(end >= length for end, length in zip(last, source.shape, strict=True)):
            raise InputError(f"{where} is assembled from more of {part.file_name} than it holds.")
        mapped += int(part.vspace.get_select_npoints())
    if mapped < math.prod(stored.shape):
        raise InputError(f"{where} is assembled from {mapped:,} values, but should have {math.prod(stored.shape):,}.")


def natural(name: str) -> Sequence[tuple[int, str]]:
    """A sort key for names that compares the numbers in them as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else (0, part) for i, part in enumerate(parts)]
