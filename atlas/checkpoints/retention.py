"""Which checkpoints of a run are kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """The config section `checkpoint`, and the metric by which a checkpoint is better than another."""

    last_n: int
    best_n: int = 1
    every_n_steps: int | None = None
    metric: str | None = None
    larger_is_better: bool = False

    def kept(self, values: Mapping[int, float | None], now: int, linked: Collection[int]) -> set[int]:
        """The steps to keep, of those that are saved.

        values: {step saved: its value of the metric, or None}. now: the step saved last. linked: the steps that links
        name; they are kept in any case. So are those after `now`: training went back to before them, and leaves them
        alone until it has passed them again.
        """
        reached = sorted(step for step in values if step <= now)
        kept = {step for step in values if step > now or step in linked}
        kept.update(reached[-self.last_n :])
        if self.every_n_steps is not None:
            kept.update(step for step in reached if step % self.every_n_steps == 0)
        sign = 1 if self.larger_is_better else -1
        # Of equal ones the later, as where the best is chosen.
        ranked = sorted(
            (sign * value, step) for step in reached if (value := values[step]) is not None and math.isfinite(value)
        )
        kept.update(step for _, step in ranked[-self.best_n :])
        return kept
