"""The records that a run can log, and the small interface of its listeners.

The tracker checks every value once and makes a record of it; a sink takes records and leaves out kinds that it cannot
show. Records own their data: changes that the caller makes afterwards do not affect them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Scalars:
    """One logging call: {metric: float}, NaN and infinities included, at an optimizer step."""

    values: Mapping[str, float]
    step: int


@dataclass(frozen=True)
class Image:
    name: str
    pixels: np.ndarray  # uint8 [H, W, 3], RGB
    step: int


@dataclass(frozen=True)
class Video:
    name: str
    path: Path  # an mp4 file that stays where it is
    step: int


@dataclass(frozen=True)
class Histogram:
    """Finite values, already counted, so that a queue holds a few hundred bytes instead of the values."""

    name: str
    counts: np.ndarray  # int64 [bins]
    edges: np.ndarray  # float64 [bins + 1]
    minimum: float
    maximum: float
    number: int
    total: float
    total_squares: float
    step: int


@dataclass(frozen=True)
class Table:
    """Cells are None, bool, int, float or str, and each column holds one of these kinds (and None)."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    step: int


@dataclass(frozen=True)
class Projection:
    """Points to look at in a few dimensions, each with a row of labels and optionally a thumbnail."""

    name: str
    points: np.ndarray  # float32 [N, D]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # N of them
    thumbnails: np.ndarray | None  # uint8 [N, h, w, 3]
    step: int


@dataclass(frozen=True)
class RunConfig:
    values: Mapping[str, Any]  # nested mappings, lists, str, numbers, bool and None


@dataclass(frozen=True)
class Model:
    """A saved model: a folder or a file, under a name whose versions the aliases point to."""

    path: Path
    name: str
    aliases: Sequence[str]
    metadata: Mapping[str, Any]
    step: int
    description: str = ""  # the model card, Markdown


@dataclass(frozen=True)
class LogLine:
    """A line of the package's log, formatted and without keys."""

    text: str


Record = Scalars | Image | Video | Histogram | Table | Projection | RunConfig | Model | LogLine


class Sink:
    """Takes records. Each sink runs on its own daemon thread (see queued.py), so it may be slow or hang.

    Only `prepare` and `abandon` run on the caller's thread and must return quickly. Any exception from a sink switches
    it off with one warning; training goes on. A sink needs a `name` and `write`.
    """

    name: str

    def open(self) -> None:
        """Called once, before anything is written."""

    def prepare(self, record: Record) -> Record | None:
        """Keep what may be gone by the record's turn; None leaves the record out. On the caller's thread."""
        return record

    def write(self, record: Record) -> None:
        """Show the record, or leave it out if its kind cannot be shown."""
        raise NotImplementedError

    def flush(self) -> None:
        """Get everything written onto the disk, so that it survives whatever happens to this process."""

    def finish(self, exit_code: int) -> None:
        """Close, within the time that is left."""

    def abandon(self) -> None:
        """Time is up: make sure that nothing delays the exit of the process. On the caller's thread."""
