"""`RunTracker`: what the trainer, rollouts and users call when there is something to show.

It checks values once and makes records of them; a thread puts these into the queue of every sink, each of which has its
own thread. No failure here reaches the training loop: a wrong value is left out with one warning, a failing sink is
switched off with one warning, a stalled one drops what it has no room for, and counts it.
"""

from __future__ import annotations

import logging as py_logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atlas.config import LoggingConfig, ModelManagementConfig, WandbConfig
from atlas.registry.client import import_wandb
from atlas.registry.wandb_variables import effective_mode
from atlas.system.safe_text import plain, redact
from atlas.tracking.machine_load import SystemMonitor
from atlas.tracking.media_values import figure_pixels, write_mp4
from atlas.tracking.projector import to_projection
from atlas.tracking.records import Histogram, Model, Record, RunConfig, Scalars, Sink, Video
from atlas.tracking.sinks.console import ConsoleSink, LineHandler, log_model_line
from atlas.tracking.sinks.queued import QueuedSink, warn_switched_off
from atlas.tracking.sinks.tensorboard import TensorBoardSink
from atlas.tracking.sinks.wandb import WandbSink, choose_identity
from atlas.tracking.values import to_float, to_frames, to_histogram, to_image, to_table

logger = py_logging.getLogger(__name__)

_HAND_OUT_SECONDS = 0.05
_FLUSH_SECONDS = 2.0
_LOCAL_SHARE = 0.8  # of the exit timeout: the console and TensorBoard may take this much; usually they need none


@dataclass(frozen=True)
class Resumed:
    """The point where a run resumes: what a checkpoint keeps for the tracker."""

    step: int  # of the checkpoint; everything logged beyond it is void
    wandb_id: str | None = None
    wandb_row: int | None = None  # the last row that wandb had at the checkpoint


class RunTracker:
    """Logs a run to the console, TensorBoard and, when enabled, wandb. Safe to call on every rank and every thread.

    step: the optimizer step that calls without one are logged at; the trainer keeps it current.
    wandb_id: the id of the wandb run, kept in checkpoints so that a resumed run continues it; None without wandb.
    """

    def __init__(
        self,
        run_dir: Path,
        run_name: str,
        wandb: WandbConfig,
        logging: LoggingConfig,
        is_main: bool = True,
        resumed: Resumed | None = None,
        wandb_id: str | None = None,
        total_steps: int | None = None,
        extra_sinks: Sequence[Sink] = (),
        models: ModelManagementConfig | None = None,
        strict: bool = False,
        from_experience: bool = False,
    ) -> None:
        """Open the sinks; if is_main is False there are none, and nothing is imported or written.

        wandb_id: the id of the wandb run, if it has been chosen elsewhere. total_steps: of the whole run, for the
        console. extra_sinks: further listeners. models: how many versions wandb keeps, and where it links them.
        strict: raise for a value that cannot be logged, for tests. from_experience: TensorBoard's charts are those of
        a run that learns from what it plays.
        """
        self.step = resumed.step if resumed else 0
        self.wandb_id = wandb_id or (resumed.wandb_id if resumed else None)
        self._run_dir = Path(run_dir)
        self._strict = strict
        self._stop = threading.Event()
        self._warned: set[str] = set()
        self._exit_timeout = logging.exit_timeout_seconds
        self._sinks: list[QueuedSink] = []
        self._wandb: WandbSink | None = None
        self._lines: LineHandler | None = None
        self._system: SystemMonitor | None = None
        self._waiting: deque[Record] = deque()  # for the sinks' queues; its methods are atomic
        self._handing_out = threading.Lock()
        self._ended = threading.Event()
        self._finished = not is_main
        if not is_main:
            return
        step = resumed.step if resumed else None
        self._add("console", lambda: ConsoleSink(total_steps))
        self._add("tensorboard", lambda: TensorBoardSink(self._run_dir, step, from_experience))
        if wandb.enabled:
            models = models or ModelManagementConfig()
            self._add("wandb", lambda: self._make_wandb(run_name, wandb, models, resumed))
        for sink in extra_sinks:
            self._sinks.append(QueuedSink(sink))
        if self._wandb is not None:
            self._lines = LineHandler(self._waiting.append)
        threading.Thread(target=self._hand_out_now_and_then, name="atlas-tracker", daemon=True).start()
        if logging.system_interval_seconds:
            self._system = SystemMonitor(self.log, logging.system_interval_seconds)

    def _add(self, name: str, make: Callable[[], Sink | None]) -> None:
        try:
            sink = make()
        except Exception as error:
            warn_switched_off(name, error)
            return
        if sink is not None:
            self._sinks.append(QueuedSink(sink))

    def _make_wandb(
        self, run_name: str, config: WandbConfig, models: ModelManagementConfig, resumed: Resumed | None
    ) -> Sink | None:
        mode = effective_mode(config)
        if mode == "disabled":
            return None
        wandb = import_wandb()
        identity = choose_identity(wandb, config, self._run_dir, self.wandb_id)
        self.wandb_id = identity.run_id
        self._wandb = WandbSink(
            wandb,
            config,
            models,
            self._run_dir,
            run_name,
            identity,
            mode,
            self._exit_timeout,
            self._stop.set,
            rewind_to=resumed.wandb_row if resumed and config.rewind else None,
        )
        return self._wandb

    @property
    def wandb_row(self) -> int | None:
        """The last row given to wandb, kept in checkpoints for `wandb.rewind`; None if unknown."""
        self._hand_out()
        return None if self._wandb is None else self._wandb.last_row

    @property
    def stop_requested(self) -> bool:
        """True once somebody has pressed wandb's stop button; only the main rank sees it."""
        return self._stop.is_set()

    # ---- logging ---------------------------------------------------------------------------------------------

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, numpy scalars or 0-d tensors unchanged; nothing is averaged over steps or ranks.

        A value that is not a single number is left out, with one warning per name; with `strict`, TypeError.
        """
        if self._finished:
            return
        values: dict[str, float] = {}
        for name, value in metrics.items():
            if type(value) is float and type(name) is str:  # the usual case, without the time of three calls
                values[name] = value
                continue
            try:
                values[str(name)] = to_float(str(name), value)
            except TypeError as error:
                self._complain(str(name), error)
        if values:
            self._waiting.append(Scalars(values, self._at(step)))

    def log_image(self, name: str, image: Any, step: int | None = None) -> None:
        """Log a uint8 [H, W, 3] RGB image, array or tensor."""
        self._log_checked(name, lambda: to_image(name, image, self._at(step)))

    def log_video(self, name: str, video: Any, fps: float = 20.0, step: int | None = None) -> None:
        """Log an mp4 file by its path, or uint8 [T, H, W, 3] frames, which are written to `<run_dir>/videos/` as mp4.

        fps applies to frames; a file has its own.
        """

        def make() -> Video:
            at = self._at(step)
            if isinstance(video, str | Path):
                if not Path(video).is_file():
                    raise ValueError(f"video '{name}': there is no file {video}")
                return Video(name, Path(video), at)
            path = self._run_dir / "videos" / f"{_file_name(name)}_step_{at:08d}.mp4"
            write_mp4(path, to_frames(name, video), fps)
            return Video(name, path, at)

        self._log_checked(name, make)

    def log_histogram(self, name: str, values: Any, step: int | None = None) -> None:
        """Log the distribution of the finite values in an array or tensor of any shape."""
        self._log_checked(name, lambda: to_histogram(name, values, self._at(step)))

    def log_counts(
        self,
        name: str,
        counts: np.ndarray,
        edges: np.ndarray,
        minimum: float,
        maximum: float,
        total: float,
        total_squares: float,
        step: int | None = None,
    ) -> None:
        """Log a distribution that is already counted, for example on another device: counts int64 [bins] between edges
        float64 [bins + 1]; total and total_squares: the sums of the values and of their squares."""
        number = int(counts.sum())
        self._log_checked(
            name,
            lambda: Histogram(name, counts, edges, minimum, maximum, number, total, total_squares, self._at(step)),
        )

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None
    ) -> None:
        """Log rows of numbers and text, one cell per column; a column of mixed kinds becomes text."""
        self._log_checked(name, lambda: to_table(name, columns, rows, self._at(step)))

    def log_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Log a figure as an image: anything with `savefig` (such as matplotlib's), or a PIL image."""
        self._log_checked(name, lambda: to_image(name, figure_pixels(figure), self._at(step)))

    def log_projection(
        self,
        name: str,
        points: Any,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        thumbnails: Any = None,
        step: int | None = None,
    ) -> None:
        """Log points [N, D] for TensorBoard's projector, each with a row of labels and optionally a thumbnail: uint8
        [N, h, w, 3]. wandb has no such view and gets nothing."""
        self._log_checked(name, lambda: to_projection(name, points, columns, rows, thumbnails, self._at(step)))

    def log_config(self, values: Mapping[str, Any]) -> None:
        """Log the run's configuration, a nested mapping."""
        self._log_checked("config", lambda: RunConfig(plain(values)))

    def log_model(
        self,
        path: Path,
        name: str,
        aliases: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        step: int | None = None,
        description: str = "",
    ) -> None:
        """Keep a saved model, a folder or a file, as a wandb artifact; without wandb, log where it is.

        The files may be deleted afterwards, but not changed in place. Characters that artifact names and aliases may
        not contain become '-'. description: a model card, in Markdown.
        """

        def make() -> Model:
            if not Path(path).exists():
                raise ValueError(f"model '{name}': there is no {path}")
            allowed = [re.sub(r"[/:]", "-", alias) for alias in aliases]
            about = plain(metadata or {})
            return Model(Path(path), _file_name(name), allowed, about, self._at(step), redact(description))

        self._log_checked(name, make)

    def flush(self) -> None:
        """Get everything logged so far into TensorBoard's file, within two seconds.

        Called before a checkpoint is written, so that a run resumed from it has the whole curve.
        """
        self._hand_out()
        for sink in self._sinks:
            if isinstance(sink.sink, TensorBoardSink):
                sink.flush(_FLUSH_SECONDS)

    def finish(self, exit_code: int = 0, within: float | None = None) -> None:
        """Write what is waiting and close every sink, within `logging.exit_timeout_seconds`; later calls do nothing.

        within: seconds, if there is less time than that.
        """
        if self._finished:
            return
        if self._system is not None:
            self._system.stop()
        self._finished = True
        start = time.monotonic()
        if within is not None:
            self._exit_timeout = min(within, self._exit_timeout)
            if self._wandb is not None:
                self._wandb.finish_within(self._exit_timeout)
        self._ended.set()
        self._hand_out()
        try:
            for sink in self._sinks:
                # wandb comes last: what the others still log belongs in its log.
                if sink.sink is not self._wandb:
                    sink.finish(exit_code, start + _LOCAL_SHARE * self._exit_timeout)
            if self._lines is not None:
                self._lines.close()
            self._hand_out()
            for sink in self._sinks:
                if sink.sink is self._wandb:
                    sink.finish(exit_code, start + self._exit_timeout)
        except KeyboardInterrupt:  # otherwise the exit would wait for a frozen wandb for ever
            for sink in self._sinks:
                sink.sink.abandon()
            raise
        self._sinks.clear()

    # ---- handing out -----------------------------------------------------------------------------------------

    def _log_checked(self, name: str, make: Callable[[], Record]) -> None:
        """Hand out the record that `make` builds from a user's value, or warn once that it cannot be built."""
        if self._finished:
            return
        try:
            record = make()
        except Exception as error:  # of any kind: encoders and figures are other people's code
            self._complain(name, error)
            return
        self._waiting.append(record)
        if isinstance(record, Model):
            self._hand_out()  # now, while its files exist
            if self._wandb is None:
                log_model_line(record)

    def _hand_out_now_and_then(self) -> None:
        while not self._ended.wait(_HAND_OUT_SECONDS):
            self._hand_out()

    def _hand_out(self) -> None:
        """Put what is waiting into the queue of every sink; it takes little time, but more than `log` may."""
        with self._handing_out:
            while self._waiting:
                record = self._waiting.popleft()
                for sink in self._sinks:
                    sink.write(record)

    def _at(self, step: int | None) -> int:
        return self.step if step is None else int(step)

    def _complain(self, name: str, error: Exception) -> None:
        if self._strict:
            raise error
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("'%s' is not logged: %s", name, error)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
