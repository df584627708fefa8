"""Exact statistics of actions and proprio over the training episodes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


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
    def of(cls, values: np.ndarray) -> ColumnStatistics:
        """Of float [N, D], computed in float64."""
        values = values.astype(np.float64)
        q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
        rows = (values.mean(0), values.std(0), values.min(0), values.max(0), q01, q99)
        return cls(*(tuple(float(v) for v in row) for row in rows))


@dataclass(frozen=True)
class DatasetStatistics:
    """What a policy needs to know of one source of data to scale its actions and proprio."""

    source: str  # a name for people: where the data is from
    frames: int
    episodes: int
    action: ColumnStatistics
    proprio: ColumnStatistics

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DatasetStatistics:
        columns = {
            name: ColumnStatistics(**{k: tuple(v) for k, v in values[name].items()}) for name in ("action", "proprio")
        }
        return cls(source=values["source"], frames=values["frames"], episodes=values["episodes"], **columns)
