"""A grid on this machine, without any account: one training process per point, several at a time; continues where it
was stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from atlas.config import Config, DataConfig, load_config
from atlas.errors import InputError
from atlas.launch import Plan, count_gpus, without_choice
from atlas.runs.comparison import Comparison, compare_runs
from atlas.runs.run_directory import is_run, read_run, summarize
from atlas.sweeps.grid import Point, Start, Sweep, arguments_of, config_of, grid_points, local_start
from atlas.system.file_store import CONFIG
from atlas.system.process_control.cores import available_cores
from atlas.system.process_control.interpreter import module_command, safe_environment
from atlas.system.process_control.terminal import leave_lost_terminal

State = Literal["finished", "failed", "stopped", "waiting"]

LOG = "sweep.log"  # in a run's folder: everything its process printed
_POLL_SECONDS = 0.2
_LOG_LINES = 5  # lines shown of a failed run's log
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Sections in which a run may differ from the grid and still be the run that the grid asks for.
_NO_MATTER = ("distributed", "wandb", "logging", "model_management")


@dataclass
class Trial:
    """A point and what has become of it."""

    point: Point
    run_dir: Path
    state: State = "waiting"
    exit_code: int | None = None  # None if it was not started, or had finished before

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.point.name,
            "values": self.point.values,
            "path": str(self.run_dir),
            "state": self.state,
            "exit_code": self.exit_code,
        }


class Grid:
    """The runs of a sweep file in one folder.

    Creating one checks everything that can be wrong before anything is started. Raises InputError.
    """

    def __init__(self, sweep: Sweep, out: Path, parallel: int = 1) -> None:
        """parallel: how many runs at a time; they share the machine's GPUs and cores."""
        self.out, self._sweep, self._parallel = out, sweep, parallel
        self._start = local_start(sweep)
        if parallel > 1 and any(option.startswith("--gpu-ids") for option in self._start.options):
            raise InputError(f"--parallel shares out the GPUs, but 'command' in {sweep.file} has --gpu-ids; keep one.")
        self.trials = [Trial(point, out / point.name) for point in grid_points(sweep)]
        self._configs = [config_of(sweep, trial.point, self._start, out) for trial in self.trials]
        for trial, config in zip(self.trials, self._configs, strict=True):
            if _finished(trial.run_dir, config):
                trial.state = "finished"

    def run(self, say: Callable[[str], None]) -> int:
        """Train what is not finished. `say` is called with one line at a time. Returns the exit code: 0 if every point
        is finished, 130 or 143 if a signal stopped the grid (its runs then have checkpoints), otherwise 1.
        """
        waiting = [trial for trial in self.trials if trial.state == "waiting"]
        if len(waiting) < len(self.trials):
            say(f"{len(self.trials) - len(waiting)} of {len(self.trials)} runs are already finished")
        if waiting:
            _record_missing_data(self._configs)
        environments = _environments(self._parallel, self._start)
        running: dict[int, _Process] = {}  # by slot, of the `parallel` slots
        with _listening() as stop:
            while waiting or running:
                for place in range(self._parallel):
                    if place not in running and waiting and stop.signal is None:
                        trial = waiting.pop(0)
                        number = f"[{self.trials.index(trial) + 1}/{len(self.trials)}]"
                        running[place] = _Process(trial, self._arguments(trial), environments[place], number)
                        say(f"{number} {trial.point.name}: started, prints into {trial.run_dir / LOG}")
                time.sleep(_POLL_SECONDS)
                for process in running.values():
                    process.pass_on(stop)
                for place in [place for place, process in running.items() if process.ended()]:
                    say(running.pop(place).outcome())
                if stop.signal is not None and not running:
                    break
        if stop.signal is not None:
            say("Stopped; the same command continues.")
            return 128 + stop.signal
        return int(any(trial.state != "finished" for trial in self.trials))

    def compare(self, say: Callable[[str], None]) -> Comparison | None:
        """The finished runs side by side, ranked by the file's metric; None if none is finished."""
        runs = [read_run(trial.run_dir) for trial in self.trials if trial.state == "finished"]
        if not runs:
            return None
        metric = self._sweep.metric
        if metric is not None and not any(metric[0] in run.scalars for run in runs):
            say(f"No run has logged {metric[0]}, the metric of {self._sweep.file}: they are ranked by another one.")
            metric = None
        return compare_runs(runs, rank_by=metric)

    def _arguments(self, trial: Trial) -> list[str]:
        return arguments_of(trial.point, self._start, self.out)


# ---- before the start ------------------------------------------------------------------------------------


def _finished(run_dir: Path, config: Config) -> bool:
    """Whether the run exists and is finished. Raises InputError if it is a different one, or is being trained."""
    if not is_run(run_dir):
        return False
    was = _flat(load_config(run_dir / CONFIG).model_dump(mode="json"))
    now = _flat(config.model_dump(mode="json"))
    differing = [
        f"{key} was {was.get(key)} and is {now.get(key)}" for key in {**was, **now} if was.get(key) != now.get(key)
    ]
    if differing:
        raise InputError(
            f"{run_dir} holds a run that the grid does not ask for: {'; '.join(differing)}. Remove it, or choose "
            "another folder with --out."
        )
    state = summarize(run_dir, run_dir.name).state
    if state == "running":
        raise InputError(f"{run_dir} is being trained by another process; wait for it, or choose another --out.")
    return state == "finished"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if prefix or key not in _NO_MATTER:
            found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _record_missing_data(configs: Sequence[Config]) -> None:
    """Record the default demonstrations once, before several runs would record them at the same time."""
    if any(config.data.reads_default for config in configs):
        from atlas.rollout.recording import RecordSettings, record

        for config in configs:
            if config.data.reads_default:
                record(RecordSettings(**config.data.record.model_dump()), Path(DataConfig().path), wait=True)


def _environments(parallel: int, start: Start) -> list[dict[str, str]]:
    """The environment of each parallel run, with its share of the GPUs or cores."""
    common = {**without_choice(os.environ), **safe_environment(os.environ)}
    if "SLURM_NNODES" in common:
        common["SLURM_STEP_NUM_NODES"] = "1"  # a run uses this machine only, however many the allocation has
    if parallel == 1:
        return [common]
    environments = []
    for ids in shared_gpus(parallel, 0 if "--cpu" in start.options else count_gpus(Config().distributed)):
        plan = Plan(len(ids), cpu=False, gpu_ids=ids) if ids else Plan(1, cpu=True)
        threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // (parallel * plan.processes)))} | common
        environments.append(without_choice(threads | plan.environment(threads)))
    return environments


def shared_gpus(parallel: int, gpus: int) -> list[tuple[int, ...]]:
    """The GPUs that each of the parallel runs gets: its own share or, with fewer GPUs than runs, one shared with
    others; () without any.
    """
    if gpus < parallel:
        return [(place % gpus,) if gpus else () for place in range(parallel)]
    bounds = [place * gpus // parallel for place in range(parallel + 1)]
    return [tuple(range(begin, end)) for begin, end in pairwise(bounds)]


# ---- processes -------------------------------------------------------------------------------------------


class _StopRequest:
    """The stop signals so far."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.count = 0


@contextmanager
def _listening() -> Iterator[_StopRequest]:
    """Inside the block SIGINT, SIGTERM and SIGHUP (except under nohup) are only noted."""
    request = _StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        leave_lost_terminal()
        request.signal = request.signal or (number if number == signal.SIGINT else signal.SIGTERM)
        request.count += 1

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {n: signal.signal(n, note) for n in _SIGNALS if n != signal.SIGHUP or not ignored}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Process:
    """The training process of a trial, in its own session: Ctrl-C reaches it only through the grid."""

    def __init__(self, trial: Trial, arguments: Sequence[str], environment: dict[str, str], number: str) -> None:
        self._trial, self._number = trial, number
        self._began = time.monotonic()
        self._passed = 0
        self._log = trial.run_dir / LOG
        trial.run_dir.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*module_command("atlas.cli.grid_point"), "train", *arguments],
                env=environment,
                stdin=subprocess.PIPE,  # kept open, and closed by whatever ends this process: see grid_point.py
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pass_on(self, stop: _StopRequest) -> None:
        """Ask the process to stop, once; at a second signal, end it and what it has started."""
        if stop.count > self._passed and self._process.poll() is None:
            if self._passed == 0:
                self._process.send_signal(stop.signal or signal.SIGTERM)
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._passed += 1

    def ended(self) -> bool:
        return self._process.poll() is not None

    def outcome(self) -> str:
        """Note how the process has ended; returns a line about it."""
        code = self._process.wait()
        self._trial.exit_code = 128 - code if code < 0 else code
        seconds = time.monotonic() - self._began
        name = f"{self._number} {self._trial.point.name}"
        if code == 0:
            self._trial.state = "finished"
            return f"{name}: finished in {seconds:.0f} s"
        if self._passed:
            self._trial.state = "stopped"
            return f"{name}: stopped"
        self._trial.state = "failed"
        last = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        lines = "".join(f"\n    {line}" for line in last)
        return (
            f"{name}: failed with exit code {self._trial.exit_code} after {seconds:.0f} s; the end of its log:{lines}"
        )
