"""Whether what is to be written can be written, seen before work begins, and without leaving anything."""

from __future__ import annotations

import os
from pathlib import Path

from atlas.errors import InputError


def check_folder(setting: str, folder: Path) -> None:
    """Raises InputError where `folder` is not there and cannot be made, is a file, or takes no files.

    setting: the flag or key that names it.
    """
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        what = "is a file" if there.exists() else "is a link to nowhere"
        raise InputError(f"{setting} {folder}: {there} {what}; name a folder, or one that can be made.")
    for name in folder.relative_to(there).parts:
        try:
            (there / name).lstat()
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:  # too long, or with a zero in it
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{setting}: {name!r} cannot be a folder's name: {why}.") from None
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{setting} {folder}: {there} cannot be written to; name another folder.")


def check_file(setting: str, file: Path, example: str) -> None:
    """Raises InputError where `file` is a folder, or its folder cannot be made. example: a name for such a file."""
    if file.is_dir():
        raise InputError(f"{setting} {file} is a folder; name a file, such as {file / example}.")
    check_folder(setting, file.absolute().parent)
