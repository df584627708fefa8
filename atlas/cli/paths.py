"""Whether what a command is to write can be written, seen before it begins, and without leaving anything."""

from __future__ import annotations

import os
from pathlib import Path

from atlas.errors import InputError


def check_folder(flag: str, folder: Path) -> None:
    """Raises InputError where `folder` is not there and cannot be made, is a file, or takes no files."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        what = "is a file" if there.exists() else "is a link to nowhere"
        raise InputError(f"{flag} {folder}: {there} {what}; name a folder, or one that can be made.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {folder}: {there} cannot be written to; name another folder.")


def check_file(flag: str, file: Path, example: str) -> None:
    """Raises InputError where `file` is a folder, or its folder cannot be made. example: a name for such a file."""
    if file.is_dir():
        raise InputError(f"{flag} {file} is a folder; name a file, such as {file / example}.")
    check_folder(flag, file.absolute().parent)
