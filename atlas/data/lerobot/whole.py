"""Whether files are complete, judged by their ends and lengths: an interrupted download is found early."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from atlas.data.origin import mend
from atlas.errors import InputError

_PARQUET = b"PAR1"
_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # what an MP4 file may begin with
_NAMED = 3  # damaged files named in the message


def check_whole(root: Path, files: Sequence[str]) -> None:
    """Check the structure of Parquet files and MP4 videos. Raises InputError that names the damaged ones."""
    damaged = [f"{name} ({why})" for name in files if (why := fault(root / name)) is not None]
    if damaged:
        more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise InputError(
            f"{root}: {', '.join(damaged[:_NAMED])}{more} of its {len(files)} files cannot be used. {mend(root)}"
        )


def fault(path: Path) -> str | None:
    """Name the fault in the structure of a file; None if there is none."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            look = _LOOKS.get(path.suffix)
            return look(file.fileno(), size) if look is not None else None
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _parquet_fault(descriptor: int, size: int) -> str | None:
    if size < 12 or os.pread(descriptor, 4, 0) != _PARQUET:
        return "is not a Parquet file"
    end = os.pread(descriptor, 8, size - 8)
    if end[4:] != _PARQUET or int.from_bytes(end[:4], "little") > size - 12:
        return "is truncated"
    return None


def _mp4_fault(descriptor: int, size: int) -> str | None:
    """An MP4 file is a sequence of boxes, each preceded by its length; `moov` says where the frames are."""
    kinds: set[bytes] = set()
    position = 0
    while position < size:
        head = os.pread(descriptor, 16, position)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # the last box: it reaches to the end
            length = size - position
        if not kinds and kind not in _FIRST:
            return "is not an MP4 file"
        if length < 8:
            return "is damaged"
        kinds.add(kind)
        position += length
    if position > size:
        return "is truncated"
    return None if {b"moov", b"mdat"} <= kinds else "is truncated" if kinds else "is empty"


_LOOKS = {".parquet": _parquet_fault, ".mp4": _mp4_fault}
