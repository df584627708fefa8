"""A trace of some steps, for Perfetto and TensorBoard: `training.profile`."""

from __future__ import annotations

import gzip
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from atlas.config import ProfileConfig
from atlas.errors import first_line
from atlas.system.files import atomic_path
from atlas.training.perf.timing import StepTimer

logger = logging.getLogger(__name__)

PROFILE = "profile"  # in the run's folder
_WARM_UP = 1  # a step that is traced and thrown away: the first one includes the start of tracing itself


class StepProfiler:
    """Traces the steps that the config names, and writes one file per rank when they are done.

    In the trace, the timer's parts are ranges with their names ("atlas.data", "atlas.forward", ...). Other steps cost
    nothing: torch's profiler exists only while it is used.
    """

    def __init__(self, config: ProfileConfig | None, run_dir: Path, timer: StepTimer, rank: int, step: int) -> None:
        """step: optimizer steps that are done when this process begins."""
        self._config, self._timer = config, timer
        self._file = run_dir / PROFILE / f"rank{rank}_step{step + (config.start if config else 0)}.pt.trace.json.gz"
        self._done = 0  # steps of this process
        self._running: profile | None = None
        self._begin_if_due()

    def step(self) -> None:
        """Call it after each optimizer step."""
        self._done += 1
        if self._running is not None:
            self._running.step()
            assert self._config is not None
            if self._done == self._config.start + self._config.steps:
                self.close()
        self._begin_if_due()

    def close(self) -> None:
        """Write what there is, when training ends; does nothing if all was written."""
        if self._running is None or self._config is None:
            return
        running, self._running = self._running, None
        self._timer.traced = False
        traced = self._done - self._config.start
        try:
            running.stop()
            if traced > 0:
                self._write(running)
                logger.info("A trace of %d steps: %s (https://ui.perfetto.dev, TensorBoard)", traced, self._file)
        except (OSError, RuntimeError) as error:  # a trace is only a help, so training continues
            logger.warning("The trace %s could not be written: %s.", self._file, first_line(error))

    def _begin_if_due(self) -> None:
        if self._config is None:
            return
        warm_up = min(_WARM_UP, self._config.start)
        if self._done != self._config.start - warm_up:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a trace from the first step on has no warm-up
            plan = schedule(wait=0, warmup=warm_up, active=self._config.steps, repeat=1)
        self._running = profile(activities=activities, schedule=plan, record_shapes=True)
        self._running.start()
        self._timer.traced = True

    def _write(self, running: profile) -> None:
        with atomic_path(self._file) as partial, tempfile.TemporaryDirectory(dir=self._file.parent) as folder:
            plain = Path(folder) / "trace.json"
            running.export_chrome_trace(str(plain))
            with plain.open("rb") as source, gzip.open(partial, "wb") as target:
                shutil.copyfileobj(source, target)
