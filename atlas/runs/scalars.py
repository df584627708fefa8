"""Reading a run's metrics back from its TensorBoard files, while it is being written too."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atlas.errors import InputError
from atlas.tracking.sinks.tensorboard import FOLDER

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_LENGTH = struct.Struct("<QI")  # of a record, and the checksum of these eight bytes
_CHECKSUM = struct.Struct("<I")  # behind the record
# Scalars come in small records. Larger ones hold pictures and histograms, which are not used here; their checksums
# would take 90% of the time.
_CHECKED_BYTES = 4096
_POLYNOMIAL = 0x82F63B78  # CRC-32C's, reflected


PARTS = ("actor", "learner")  # folders of a run of learning, which have a board each


def boards(run_dir: Path) -> list[Path]:
    """The folders that a run logs to: its own and those of its parts, as far as they are there; its own at least."""
    return [run_dir, *(folder for part in PARTS if ((folder := run_dir / part) / FOLDER).is_dir())]


def read_all_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """`read_scalars` of all boards of a run; of a name that several have, the last one's. Raises InputError."""
    found: dict[str, list[tuple[int, float]]] = {}
    for folder in boards(Path(run_dir)):
        found |= read_scalars(folder)
    return found


def read_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of a run: {tag: [(step, value), ...]} in the order logged; {} where nothing was logged.

    The segments of a resumed run are joined. A later segment replaces what an earlier one logged after the step from
    which it continues and, at that step, what it logs again. Values are float32, as in the files. A half-written
    record at the end of a file is left out. Raises InputError for a damaged file.
    """
    from tensorboard.compat.proto.event_pb2 import SessionLog

    scalars: dict[str, list[tuple[int, float]]] = {}
    before: dict[str, int] = {}  # points of earlier segments
    for file in event_files(run_dir):
        for event in events(file):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                for points in scalars.values():
                    points[:] = [point for point in points if point[0] < event.step]
                before = {tag: len(points) for tag, points in scalars.items()}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    points = scalars.setdefault(value.tag, [])
                    if points and points[-1][0] == event.step and len(points) == before.get(value.tag):
                        points.pop()
                    points.append((event.step, value.simple_value))
    return {tag: points for tag, points in scalars.items() if points}


def event_files(run_dir: Path) -> list[Path]:
    """A run's event files, in the order in which they were begun."""
    return sorted((Path(run_dir) / FOLDER).glob("events.out.tfevents.*"), key=_begun)


def _begun(file: Path) -> tuple[int, ...]:
    """The numbers in an event file's name: its second, its process, and how many files that process had begun."""
    return tuple(int(part) for part in file.name.split(".") if part.isdecimal())


def events(file: Path) -> Iterator[Event]:
    """The complete records of an event file. Raises InputError for a damaged one."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.compat.proto.event_pb2 import Event

    with file.open("rb") as records:
        while len(head := records.read(_LENGTH.size)) == _LENGTH.size:
            length, checksum = _LENGTH.unpack(head)
            start = records.tell() - _LENGTH.size
            if checksum != _masked_crc32c(head[:8]):
                raise _damaged(file, start)
            data, tail = records.read(length), records.read(_CHECKSUM.size)
            if len(tail) < _CHECKSUM.size:
                return  # its writer has not come further, or was killed here
            if length <= _CHECKED_BYTES and _CHECKSUM.unpack(tail)[0] != _masked_crc32c(data):
                raise _damaged(file, start)
            try:
                yield Event.FromString(data)
            except DecodeError:
                raise _damaged(file, start) from None


def _damaged(file: Path, position: int) -> InputError:
    return InputError(f"{file} is damaged at byte {position}; move it away to read the run without it.")


def _masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, rotated and shifted by a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc_table()
