"""Writing files so that a reader sees either the whole new file or the old one, never half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # the ending of names of incomplete files and folders
_LONGEST_STEM = 100  # characters of the name kept in a partial one; file systems allow 255 bytes
# Some network and foreign file systems keep folders only on the server, or do not let them be opened.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EACCES}
_PIECE = 1 << 20  # bytes
_LONGEST_TARGET = 255  # characters of a text file that replaces a link


def partial_name(path: Path) -> Path:
    """A hidden name beside `path` that nobody else uses: not even a process with the same number on another machine or
    in another container that shares the disk."""
    return path.with_name(f".{path.name[:_LONGEST_STEM]}.{secrets.token_hex(8)}{PARTIAL}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed to it when the block succeeds and removed when it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which the block fills and renames to it; whatever is left then is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A copy of nested values with null for non-finite numbers, which neither JSON nor wandb accepts."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- links -----------------------------------------------------------------------------------------------


def make_link(link: Path, target: str) -> None:
    """Create a link to `target`, a name in the link's own folder: a symbolic link, or where the file system has none a
    text file that holds the name."""
    try:
        link.symlink_to(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        link.write_text(f"{target}\n", encoding="utf-8")
        sync(link)


def link_target(link: Path) -> str | None:
    """Return the name that a link made by `make_link` holds, whether or not that exists; None for anything else."""
    if link.is_symlink():
        return os.readlink(link)
    try:
        text = link.read_bytes()[: _LONGEST_TARGET + 1].decode().strip() if link.is_file() else ""
    except (OSError, ValueError):
        return None
    return text if text and len(text) <= _LONGEST_TARGET and Path(text).name == text else None


def follow(path: Path) -> Path:
    """The folder that a link made by `make_link` leads to; any other path unchanged."""
    target = link_target(path)
    return path.parent / target if target is not None and (path.parent / target).is_dir() else path


# ---- the bytes -------------------------------------------------------------------------------------------


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes in hex. Reads piecewise into one buffer, so other threads keep running."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


# ---- the disk --------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FOLDER_SYNC):
            raise


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and every file and folder in it. Raises OSError."""
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(inside, name))
        sync(Path(inside))
