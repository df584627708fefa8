"""What a run can be told, and the one small interface of whoever listens.

The tracker checks every value once and makes a record of it; a sink takes records and leaves out the kinds it
cannot show. Records own their data: nothing the caller changes afterwards changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
    """Finite values, already counted, so that a queue holds a few hundred bytes and not the values."""

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
    """Cells are None, bool, int, float or str, and one column holds one of these kinds (and None)."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
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


Record = Scalars | Image | Video | Histogram | Table | RunConfig | Model


class Sink(Protocol):
    """Takes records on the training thread, so every call returns quickly.

    Whatever it raises switches it off with one warning; training goes on.
    """

    name: str

    def write(self, record: Record) -> None: ...

    def finish(self, exit_code: int) -> None: ...
