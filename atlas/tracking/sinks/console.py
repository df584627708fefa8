"""The terminal and `train.log`: the package's log lines, and one readable line per logging call."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from atlas.system.process_control.notices import said_once
from atlas.system.safe_text import printable, redact
from atlas.tracking.records import LogLine, Model, Record, Scalars, Sink

logger = logging.getLogger(__name__)

# The known metrics that are worth a place in a line, in this order: label and format.
_SHOWN: dict[str, tuple[str, str]] = {
    "train/loss": ("loss", "{:.4f}"),
    "train/pose_loss": ("pose", "{:.4f}"),
    "train/gripper_loss": ("gripper", "{:.4f}"),
    "train/lr": ("lr", "{:.2e}"),
    "train/grad_norm": ("grad", "{:.3f}"),
    "train/epoch": ("epoch", "{:.2f}"),
    "val/loss": ("loss", "{:.4f}"),
    "val/pose_l2_error": ("pose l2", "{:.4f}"),
    "val/position_error_mm": ("position", "{:.2f} mm"),
    "val/rotation_error_deg": ("rotation", "{:.2f} deg"),
    "val/joint_error_deg": ("joints", "{:.2f} deg"),
    "val/joint_error_percent": ("joints", "{:.2f}%"),
    "val/gripper_accuracy": ("gripper accuracy", "{:.3f}"),
    "eval/success_rate": ("success", "{:.3f}"),
    "eval/mean_reward": ("reward", "{:.3f}"),
    "eval/episode_length": ("length", "{:.1f}"),
    "perf/samples_per_second": ("", "{:.0f} samples/s"),
}
# Parts, variants and repetitions of the above: shown in the dashboards, not in the line.
_HIDDEN = {
    "train/step",
    "train/restart",
    "train/skipped_steps",  # each has a warning of its own
    "val/pose_loss",
    "val/gripper_loss",
    "val/pose_l1_error",
    "val/gripper_error",
}
LOG = "train.log"  # in the run's folder
_SECTIONS = ("train", "val", "eval")
NOT_ON_TERMINAL = {"not_on_terminal": True}  # the `extra` of a line that is only for train.log and wandb


class ConsoleSink(Sink):
    """Logs one line for every call that holds train/*, val/* or eval/* metrics, through the `atlas` logger."""

    name = "console"

    def __init__(self, total_steps: int | None = None) -> None:
        """total_steps: the optimizer steps of the whole run, shown behind the current one."""
        self._total_steps = total_steps

    def write(self, record: Record) -> None:
        if isinstance(record, Scalars):
            line = format_line(record, self._total_steps)
            if line:
                logger.info("%s", line)


def format_line(record: Scalars, total_steps: int | None = None) -> str:
    """`step  120/3000  loss 0.0321  pose 0.0297  812 samples/s`, or '' if there is nothing to show."""
    parts = []
    for section in _SECTIONS:
        # Metrics of one task (`val/<task>/...`) would fill the screen.
        named = [n for n in record.values if n.startswith(f"{section}/") and n.count("/") == 1 and n not in _HIDDEN]
        known = [n for n in _SHOWN if n in named]
        fields = [_field(n, record.values[n]) for n in known + [n for n in named if n not in _SHOWN]]
        if fields and section == "train" and "perf/samples_per_second" in record.values:
            fields.append(_field("perf/samples_per_second", record.values["perf/samples_per_second"]))
        if fields:
            parts.append("  ".join(fields if section == "train" else [section, *fields]))
    if not parts:
        return ""
    total = "" if total_steps is None else f"/{total_steps}"
    width = 6 if total_steps is None else len(str(total_steps))
    return f"step {record.step:>{width}}{total}  " + "  |  ".join(parts)


def _field(name: str, value: float) -> str:
    label, form = _SHOWN.get(name, (name.split("/", 1)[1].replace("_", " "), "{:.4g}"))
    return f"{label} {form.format(value)}".strip()


def log_model_line(model: Model) -> None:
    """Log where a model is, if no dashboard keeps it."""
    aliases = f" ({', '.join(model.aliases)})" if model.aliases else ""
    logger.info("model %s%s at step %d: %s", model.name, aliases, model.step, model.path)


# ---- the `atlas` logger ------------------------------------------------------------------------------------


class _Formatter(logging.Formatter):
    """Time, rank if it is not the main one, level if it is not INFO, message; without keys and terminal control
    characters, whether they are in the message or in a traceback.
    """

    def __init__(self, prefix: str, date_format: str) -> None:
        super().__init__(f"%(asctime)s {prefix}%(message)s", date_format)
        self._with_level = logging.Formatter(f"%(asctime)s {prefix}%(levelname)s: %(message)s", date_format)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record) if record.levelno == logging.INFO else self._with_level.format(record)
        return printable(redact(text))


class LineHandler(logging.Handler):
    """Passes on the package's log lines as records, from INFO up, until it is closed."""

    def __init__(self, emit: Callable[[LogLine], object]) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_Formatter("", "%Y-%m-%d %H:%M:%S"))
        self._hand_on = emit
        logging.getLogger("atlas").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._hand_on(LogLine(self.format(record)))

    def close(self) -> None:
        logging.getLogger("atlas").removeHandler(self)
        super().close()


class _LogFile(logging.FileHandler):
    """A log file that is given up, with one line on stderr, if it cannot be written (for example, a full disk)."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger("atlas").removeHandler(self)
        print(f"{self.baseFilename} cannot be written ({sys.exc_info()[1]}); it ends here.", file=sys.stderr)


def setup_logging(run_dir: Path, is_main: bool, rank: int | None = None) -> Callable[[], None]:
    """Send the `atlas` logger's lines to stderr, and on the main rank also to `<run_dir>/train.log` (appended).

    The main rank shows INFO and above; others WARNING and above, with their rank (default: $RANK) in front, and
    no file. Returns a function that undoes it and closes the file; call it when the run is over, and before
    setting up again.
    """
    package = logging.getLogger("atlas")
    level, propagate = package.level, package.propagate
    who = "" if is_main else f"[rank {os.environ.get('RANK', '?') if rank is None else rank}] "
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(_Formatter(who, "%H:%M:%S"))
    handlers[0].addFilter(lambda record: not hasattr(record, "not_on_terminal"))
    if is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        handlers.append(_LogFile(run_dir / LOG, encoding="utf-8"))
        handlers[1].setFormatter(_Formatter(who, "%Y-%m-%d %H:%M:%S"))
    for handler in handlers:
        package.addHandler(handler)
    once = ExitStack()
    once.enter_context(said_once())
    package.setLevel(logging.INFO if is_main else logging.WARNING)
    package.propagate = False  # notebooks and cluster launchers give the root logger a handler: lines would double

    def undo() -> None:
        once.close()
        for handler in handlers:
            package.removeHandler(handler)
            handler.close()
        package.setLevel(level)
        package.propagate = propagate

    return undo
