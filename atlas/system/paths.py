"""Paths from outside: checking early whether they can be written to, and keeping names inside a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from atlas.errors import InputError


def check_folder(setting: str, folder: Path) -> None:
    """Raises InputError if `folder` does not exist and cannot be created, is a file, or is not writable.

    setting: the flag or key that names it.
    """
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        what = "is a file" if there.exists() else "is a link to nowhere"
        raise InputError(f"{setting} {folder}: {there} {what}; name a folder, or one that can be created.")
    for name in folder.relative_to(there).parts:
        try:
            (there / name).lstat()
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:  # too long, or with a null character in it
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{setting}: {name!r} cannot be a folder's name: {why}.") from None
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{setting} {folder}: {there} cannot be written to; name another folder.")


def check_file(setting: str, file: Path, example: str) -> None:
    """Raises InputError if `file` is a folder, or its folder cannot be created. example: a name for such a file."""
    if file.is_dir():
        raise InputError(f"{setting} {file} is a folder; name a file, such as {file / example}.")
    check_folder(setting, file.absolute().parent)


def file_name(text: str, longest: int = 120) -> str:
    """A file name made from a text that anybody may have written: its letters, digits, `_` and `-`; may be empty.

    longest: in bytes; file names are limited to 255.
    """
    return os.fsencode(re.sub(r"[^\w-]+", "_", text))[:longest].decode("utf-8", "ignore").strip("_")


def inside(folder: Path, name: str, *, where: str = "", follow_links: bool = False) -> Path:
    """The path in `folder` that a name from outside means: from a manifest, a template, a server's answer.

    where: begins the message, and says where the name comes from. Links that leave the folder are refused too. With
    `follow_links` they are followed, for reading only: the files of the hub's cache, for one, all lie elsewhere.
    Raises InputError for a name that is absolute, leads out of the folder, or is no name.
    """
    start = f"{where}: " if where else ""
    if reason := unfit(name):
        raise InputError(f"{start}{_shown(name)} cannot name a file in {folder}: {reason}.")
    path = folder / PurePosixPath(name)
    if not follow_links:
        try:
            there = path.resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError):  # a circle of links
            there = False
        if not there:
            raise InputError(f"{start}{_shown(name)} leaves {folder} through a link.")
    return path


def files_below(folder: Path, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    """The files in a folder and its subfolders, sorted, without hidden ones.

    Linked folders are entered. A file or folder reachable twice through links is taken once, by the first of its paths,
    so circles of links end. Raises InputError for a folder that cannot be read.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    taken: set[Path] = set()

    def unreadable(error: OSError) -> None:
        raise InputError(f"The folder {error.filename} cannot be read: {error.strerror}.") from None

    for inside, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        there = os.stat(inside)
        again = (there.st_dev, there.st_ino) in entered
        entered.add((there.st_dev, there.st_ino))
        folders[:] = [] if again else sorted(name for name in folders if not name.startswith("."))
        for name in sorted(() if again else names):
            path = Path(inside, name)
            if name.endswith(suffixes) and not name.startswith(".") and path.is_file():
                real = path.resolve()
                if real not in taken:
                    taken.add(real)
                    found.append(path)
    return sorted(found)


_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, on Linux


def unfit(name: str) -> str | None:
    """Why a name, which may have parts, cannot name a file below a folder on every system; None if it can."""
    try:
        parts = [os.fsencode(part) for part in name.split("/")]
    except UnicodeEncodeError:
        return "it holds a lone surrogate"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "it holds a control character"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "it is absolute"
    if "\\" in name:
        return "it holds a backslash"
    if b".." in parts:
        return "it leads out of the folder by '..'"
    if max(map(len, parts)) > _LONGEST_NAME or len(name) > _LONGEST_PATH:
        return "it is too long"
    return None if PurePosixPath(name).parts else "it is empty"


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def cache_root() -> Path:
    """The folder in which Atlas keeps what it could download or compute again: $ATLAS_CACHE_DIR, otherwise `atlas` in
    $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("ATLAS_CACHE_DIR"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "atlas"
