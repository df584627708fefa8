"""`RunTracker`: the one thing the trainer, rollouts and users talk to when there is something to show.

It checks values once, makes records of them and hands these to every sink. Nothing that goes wrong here reaches the
training loop: a wrong value is left out with one warning, a failing sink is switched off with one warning.
"""

from __future__ import annotations

import logging as py_logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas.config import LoggingConfig, WandbConfig
from atlas.tracking.console import ConsoleSink, log_model_line
from atlas.tracking.media import figure_pixels, write_mp4
from atlas.tracking.queued import QueuedSink, warn_switched_off
from atlas.tracking.records import Model, Record, RunConfig, Scalars, Sink, Video
from atlas.tracking.redact import plain
from atlas.tracking.tensorboard import TensorBoardSink
from atlas.tracking.values import to_float, to_frames, to_histogram, to_image, to_table
from atlas.tracking.wandb_sink import WandbSink, choose_identity, effective_mode, import_wandb

logger = py_logging.getLogger(__name__)


class RunTracker:
    """Logs a run to the console, TensorBoard and, when enabled, wandb. Safe to call on every rank.

    step: the optimizer step that calls without one are logged at; the trainer keeps it current.
    wandb_id: the id of the wandb run, to be kept in checkpoints so that a resumed run continues it; None without.
    """

    def __init__(
        self,
        run_dir: Path,
        run_name: str,
        wandb: WandbConfig,
        logging: LoggingConfig,
        is_main: bool = True,
        resume_step: int | None = None,
        wandb_id: str | None = None,
        total_steps: int | None = None,
        extra_sinks: Sequence[Sink] = (),
    ) -> None:
        """Open the sinks; with is_main False there are none, and nothing is imported or written.

        resume_step: the step of the checkpoint that training goes on from: what was logged beyond it is void.
        wandb_id: the id kept in that checkpoint. total_steps: of the whole run, for the console.
        extra_sinks: further listeners, fed after the built-in ones.
        """
        self.step = resume_step or 0
        self.wandb_id = wandb_id
        self._run_dir = Path(run_dir)
        self._stop = threading.Event()
        self._warned: set[str] = set()
        self._sinks: list[Sink] = []
        self._finished = not is_main
        if not is_main:
            return
        self._add("console", lambda: ConsoleSink(total_steps))
        self._add("tensorboard", lambda: TensorBoardSink(self._run_dir, resume_step))
        if wandb.enabled:
            self._add("wandb", lambda: self._make_wandb(run_name, wandb, logging))
        self._sinks.extend(extra_sinks)

    def _add(self, name: str, make: Callable[[], Sink | None]) -> None:
        try:
            sink = make()
        except Exception as error:
            warn_switched_off(name, error)
            return
        if sink is not None:
            self._sinks.append(sink)

    def _make_wandb(self, run_name: str, config: WandbConfig, logging: LoggingConfig) -> Sink | None:
        mode = effective_mode(config)
        if mode == "disabled":
            return None
        wandb = import_wandb()
        identity = choose_identity(wandb, config, self._run_dir, self.wandb_id)
        self.wandb_id = identity.run_id
        timeout = logging.exit_timeout_seconds
        sink = WandbSink(wandb, config, self._run_dir, run_name, identity, mode, timeout, self._stop.set)
        return QueuedSink(sink, timeout)

    @property
    def stop_requested(self) -> bool:
        """True once somebody has pressed wandb's stop button; seen by the main rank only."""
        return self._stop.is_set()

    # ---- logging ---------------------------------------------------------------------------------------------

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, numpy scalars or 0-d tensors as they are; nothing is averaged over steps or ranks.

        A value that is not one number is left out, with one warning for its name.
        """
        if self._finished:
            return
        values: dict[str, float] = {}
        for name, value in metrics.items():
            try:
                values[str(name)] = to_float(str(name), value)
            except TypeError as error:
                self._warn_once(str(name), error)
        if values:
            self._emit(Scalars(values, self._at(step)))

    def log_image(self, name: str, image: Any, step: int | None = None) -> None:
        """Log a uint8 [H, W, 3] RGB image, array or tensor."""
        self._log_checked(name, lambda: to_image(name, image, self._at(step)))

    def log_video(self, name: str, video: Any, fps: float = 20.0, step: int | None = None) -> None:
        """Log an mp4 file by its path, or uint8 [T, H, W, 3] frames, which go to `<run_dir>/videos/` as an mp4.

        fps is that of frames; a file has its own.
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
        """Log the distribution of the finite ones of some numbers: an array or tensor of any shape."""
        self._log_checked(name, lambda: to_histogram(name, values, self._at(step)))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None
    ) -> None:
        """Log rows of numbers and text, one cell a column; a column of mixed kinds becomes text."""
        self._log_checked(name, lambda: to_table(name, columns, rows, self._at(step)))

    def log_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Log a figure, as an image: anything with `savefig` (matplotlib's), or a PIL image."""
        self._log_checked(name, lambda: to_image(name, figure_pixels(figure), self._at(step)))

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
    ) -> None:
        """Keep a saved model, a folder or a file, as a wandb artifact; without wandb, log where it is.

        The files may be deleted afterwards, but not changed in place. Characters that names and aliases of
        artifacts may not hold become '-'.
        """

        def make() -> Model:
            if not Path(path).exists():
                raise ValueError(f"model '{name}': there is no {path}")
            allowed = [re.sub(r"[/:]", "-", alias) for alias in aliases]
            return Model(Path(path), _file_name(name), allowed, plain(metadata or {}), self._at(step))

        self._log_checked(name, make)

    def finish(self, exit_code: int = 0) -> None:
        """Write what waits and close every sink, within `logging.exit_timeout_seconds`; later calls do nothing."""
        if self._finished:
            return
        self._finished = True
        for sink in self._sinks:
            try:
                sink.finish(exit_code)
            except Exception as error:
                warn_switched_off(sink.name, error)
        self._sinks.clear()

    # ---- handing out -----------------------------------------------------------------------------------------

    def _log_checked(self, name: str, make: Callable[[], Record]) -> None:
        """Hand out the record that `make` builds of a user's value, or warn once that it cannot be built."""
        if self._finished:
            return
        try:
            record = make()
        except Exception as error:  # of any kind: encoders and figures are other people's code
            self._warn_once(name, error)
            return
        self._emit(record)
        if isinstance(record, Model) and not any(sink.name == "wandb" for sink in self._sinks):
            log_model_line(record)

    def _emit(self, record: Record) -> None:
        for sink in list(self._sinks):
            try:
                sink.write(record)
            except Exception as error:
                self._sinks.remove(sink)
                warn_switched_off(sink.name, error)

    def _at(self, step: int | None) -> int:
        return self.step if step is None else int(step)

    def _warn_once(self, name: str, error: Exception) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("'%s' is not logged: %s", name, error)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
