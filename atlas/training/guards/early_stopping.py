"""Ending a run that does not get better any more."""

from __future__ import annotations

import math
from collections.abc import Mapping

from atlas.config import EarlyStoppingConfig
from atlas.config.tracking_sections import rises


class EarlyStopping:
    """Says to stop when `patience` values of a metric in a row were no improvement by more than `min_delta`."""

    def __init__(self, config: EarlyStoppingConfig, best: float | None = None, since: int = 0) -> None:
        """best: the best value so far; since: how many values came after it."""
        self.best, self.since = best, since
        self._config = config
        self._rising = rises(config.metric) if config.mode == "auto" else config.mode == "max"

    def enough(self, metrics: Mapping[str, float]) -> bool:
        """Look at newly measured metrics; those without the metric count for nothing, NaN for no improvement."""
        value = metrics.get(self._config.metric)
        if value is None:
            return False
        gain = math.inf if self.best is None else (value - self.best if self._rising else self.best - value)
        if gain > self._config.min_delta and not math.isnan(value):
            self.best, self.since = value, 0
        else:
            self.since += 1
        return self.since >= self._config.patience

    def reason(self) -> str:
        """Why, for people."""
        best = "no number" if self.best is None else f"{self.best:.6g}"
        return f"{self._config.metric} has not improved on {best} for {self.since} values"
