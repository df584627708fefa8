"""Exact statistics of actions and proprio over the training episodes."""

from __future__ import annotations

import hashlib
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.ma  # quantiles need it, and numpy 2.4 fails if several threads import it at once

from atlas.system.documents import read_json
from atlas.system.files import write_json
from atlas.system.paths import cache_root
from atlas.system.process_control.cores import available_cores
from atlas.system.progress import progress_bar

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the cached statistics
METHODS = ("quantiles", "mean_std", "min_max")
SMALLEST_RANGE = 1e-3  # so that a dimension that hardly moves is not amplified
_FARTHEST = 50.0  # the limit for a dimension's largest value after scaling by quantiles
_SHOWN_FROM = 2_000_000  # numbers; fewer take no noticeable time


@dataclass(frozen=True)
class ColumnStatistics:
    """Per dimension [D], over all frames; q01 and q99 are exact quantiles, not aggregated ones."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    @classmethod
    def of(cls, values: np.ndarray, title: str = "") -> ColumnStatistics:
        """values: float [N, D]. Computed in float64 on several cores. title: of the progress bar, if it takes long."""
        values = values.astype(np.float64)
        quantiles = []
        with (
            progress_bar(title if title and values.size >= _SHOWN_FROM else None, values.shape[1]) as advance,
            ThreadPoolExecutor(available_cores()) as pool,  # numpy sorts without holding Python's lock
        ):
            for pair in pool.map(lambda column: np.quantile(column, [0.01, 0.99]), values.T):
                quantiles.append(pair)
                advance(1)
        q01, q99 = np.transpose(quantiles)
        rows = (values.mean(0), values.std(0), values.min(0), values.max(0), q01, q99)
        return cls(*(tuple(float(v) for v in row) for row in rows))

    def repeated(self, times: int) -> ColumnStatistics:
        """Return the statistics of the same dimensions several times, one after the other."""
        return ColumnStatistics(**{name: row * times for name, row in vars(self).items()})

    def is_of(self, width: int) -> bool:
        """Whether each row is `width` finite numbers: values read from a file may be anything."""
        rows = asdict(self).values()
        return all(len(r) == width and all(isinstance(v, int | float) and math.isfinite(v) for v in r) for r in rows)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ColumnStatistics:
        return cls(**{name: tuple(row) for name, row in values.items()})


@dataclass(frozen=True)
class DatasetStatistics:
    """The statistics of one source of data that a policy needs to scale its actions and proprio."""

    source: str  # a name for people: where the data comes from
    frames: int
    episodes: int
    action: ColumnStatistics
    proprio: ColumnStatistics
    environment: str | None = None  # the name of the world it was recorded in
    # How each dimension is scaled, one of `METHODS`; None: all as the processor's config says, which is the case for
    # policies saved before this was decided per dimension.
    action_scaling: tuple[str, ...] | None = None
    proprio_scaling: tuple[str, ...] | None = None
    relative_action: ColumnStatistics | None = None  # of what is learned, where that is relative to the state

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if self.relative_action is None:
            del values["relative_action"]  # which older versions do not know
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DatasetStatistics:
        action, proprio = (ColumnStatistics.from_dict(values[name]) for name in ("action", "proprio"))
        scaled = (values.get(name) for name in ("action_scaling", "proprio_scaling"))
        relative = values.get("relative_action")
        action_scaling, proprio_scaling = (None if each is None else tuple(each) for each in scaled)
        return cls(
            source=values["source"],
            frames=values["frames"],
            episodes=values["episodes"],
            action=action,
            proprio=proprio,
            environment=values.get("environment"),
            action_scaling=action_scaling,
            proprio_scaling=proprio_scaling,
            relative_action=None if relative is None else ColumnStatistics.from_dict(relative),
        )


def seldom_used(columns: ColumnStatistics) -> list[int]:
    """The dimensions used in so few frames that quantiles do not show it: scaled by them, their largest value would
    exceed `_FARTHEST`."""
    low, high, smallest, largest = (np.array(getattr(columns, name)) for name in ("q01", "q99", "min", "max"))
    middle, half = (low + high) / 2, (high - low) / 2
    reach = np.maximum(largest - middle, middle - smallest)
    return np.flatnonzero((reach > SMALLEST_RANGE) & (reach > _FARTHEST * half)).tolist()


def scaling_of(columns: ColumnStatistics, method: str) -> tuple[str, ...]:
    """Choose how each dimension is scaled: as `method` says, but by its deviation if quantiles do not show its use."""
    seldom = seldom_used(columns) if method == "quantiles" else []
    return tuple("mean_std" if dimension in seldom else method for dimension in range(len(columns.mean)))


def kept_statistics(values: np.ndarray, title: str) -> ColumnStatistics:
    """`ColumnStatistics.of` for values float32 [N, D], computed once and cached under the hash of the values."""
    values = np.ascontiguousarray(values)
    digest = hashlib.blake2b(repr((_FORMAT, values.shape)).encode(), digest_size=16)
    digest.update(values.data)
    file = cache_root() / "statistics" / f"{digest.hexdigest()}.json"
    try:
        kept = ColumnStatistics.from_dict(read_json(file))
        if kept.is_of(values.shape[1]):
            return kept
    except (OSError, ValueError, TypeError, AttributeError):  # absent or incomplete
        pass
    found = ColumnStatistics.of(values, title)
    try:
        write_json(file, asdict(found))
    except OSError as error:
        logger.info("Statistics are not kept for the next run: %s cannot be written (%s).", file, error.strerror)
    return found
