"""The parts that the time of a step goes to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import record_function


class StepTimer:
    """Seconds spent in the parts of a step, averaged since they were last read.

    Times are taken on the host: work queued on a GPU is counted where the host waits for it.
    """

    def __init__(self) -> None:
        self.traced = False  # whether torch's profiler is running and is told about the parts
        self._seconds: dict[str, float] = {}
        self._steps = 0
        self._start = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        if self.traced:
            with record_function(f"atlas.{name}"):
                yield
        else:
            yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def step_done(self) -> None:
        self._steps += 1

    def restart(self) -> None:
        """Leave out what happened since the last step: validation, evaluation, saving."""
        self._seconds, self._steps, self._start = {}, 0, time.perf_counter()

    def read(self, samples_a_step: int) -> dict[str, float]:
        """`timer/*` and `perf/*`; then starts again."""
        steps = max(1, self._steps)
        total = (time.perf_counter() - self._start) / steps
        metrics = {f"timer/{name}": seconds / steps for name, seconds in self._seconds.items()}
        metrics |= {
            "timer/total": total,
            "perf/step_seconds": total,
            "perf/samples_per_second": samples_a_step / total,
            "perf/data_wait_seconds": metrics.get("timer/data", 0.0),
        }
        self.restart()
        return metrics
