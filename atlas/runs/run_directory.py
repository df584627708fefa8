"""Runs on disk: where they are, how far they have come, and what they hold. Reads files only; no server."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from atlas.errors import InputError, did_you_mean
from atlas.rollout.success_report import check_format
from atlas.runs.scalars import boards, event_files, read_all_scalars
from atlas.system.documents import read_json, read_yaml
from atlas.system.file_store import CONFIG, RESULTS
from atlas.system.files import link_target
from atlas.tracking.sinks.console import LOG
from atlas.tracking.sinks.tensorboard import FOLDER

State = Literal["finished", "stopped", "running", "unfinished"]
Points = Sequence[tuple[int, float]]  # (step, value), in the order logged

EVALUATIONS = "evaluations"  # a file with the outcomes of each
LEARNING = "learning.json"  # what a run of `atlas learn` learns from what
OF_LEARNING = ("before", "control", "after")  # the evaluations of a run of `atlas learn`; the last is the result
_QUIET_SECONDS = 600  # a run on another machine that has written nothing for this long has ended
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(?P<time>\d+)\.(?P<host>.+)\.(?P<process>\d+)\.\d+")


# ---- evaluations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one closed-loop evaluation."""

    file: Path
    purpose: str  # selection (during training), final (at its end) or report (`atlas eval`)
    step: int | None  # of training; None where it is not known
    env: str
    outcomes: Mapping[tuple[str, int], bool]  # (instruction, seed): whether it succeeded
    interval: tuple[float, float]  # of the success rate, 95%
    probes: tuple[str, ...] = ()  # what was changed in the policy's input: instruction_shuffle, blind

    @property
    def episodes(self) -> int:
        return len(self.outcomes)

    @property
    def successes(self) -> int:
        return sum(self.outcomes.values())

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes


def read_evaluation(file: Path) -> Evaluation:
    """Read an evaluation's file. Raises InputError for another or a damaged file."""
    try:
        found = read_json(file)
        check_format(found, file)
        outcomes = {(str(each["instruction"]), int(each["seed"])): bool(each["success"]) for each in found["outcomes"]}
        low, high = (float(bound) for bound in found["ci95"])
        step = None if found["step"] is None else int(found["step"])
        probes = tuple(map(str, found.get("probes", ())))
        evaluation = Evaluation(file, str(found["purpose"]), step, str(found["env"]), outcomes, (low, high), probes)
        if not len(outcomes) == len(found["outcomes"]) == int(found["episodes"]) > 0:
            raise ValueError("not one outcome for each episode")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged, or something else"
        raise InputError(
            f"{file} cannot be read as the outcomes of an evaluation: {reason}. Such files are in a run's "
            f"{EVALUATIONS}/, and `atlas eval --out FILE` writes them."
        ) from None
    return evaluation


# ---- one run ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """The files of one run so far, or, without config and scalars, one evaluation."""

    name: str
    path: Path
    config: dict[str, Any] = field(default_factory=dict)  # as config.yaml has it
    scalars: Mapping[str, Points] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()  # ascending in the step


def read_run(run_dir: Path, name: str | None = None) -> Run:
    """Read a run's folder, also during training. Raises InputError if it is not one, or is damaged."""
    if not run_dir.is_dir():
        raise InputError(f"There is no run at {run_dir}.")
    if not is_run(run_dir):
        raise InputError(f"{run_dir} is not a run: it holds neither {CONFIG} nor {FOLDER}/.{_runs_inside(run_dir)}")
    evaluations = [read_evaluation(file) for file in evaluation_files(run_dir)]
    return Run(
        name or run_dir.name or str(run_dir),
        run_dir,
        _read_config(run_dir / CONFIG),
        read_all_scalars(run_dir),
        sorted(evaluations, key=lambda evaluation: evaluation.step or 0),
    )


def evaluation_files(run_dir: Path) -> list[Path]:
    """The evaluation files of training by their names, or of learning with that of its result last."""
    folder = run_dir / EVALUATIONS
    of_learning = [file for name in OF_LEARNING if (file := folder / f"{name}.json").is_file()]
    return [*sorted(folder.glob("*_step_*.json")), *of_learning]


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / FOLDER).is_dir()


def _runs_inside(folder: Path) -> str:
    inside = [child.name for child in sorted(folder.iterdir()) if child.is_dir() and is_run(child)]
    return f" Name the runs in it, such as {folder / inside[0]}." if inside else ""


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = read_yaml(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid YAML"
        raise InputError(f"The run's {file} cannot be read: {reason}.") from None
    if not isinstance(config, dict) or not config:
        raise InputError(f"The run's {file} is damaged: it should hold sections such as 'data:'.")
    return config


def find_runs(folder: Path) -> dict[str, Path]:
    """{name: folder} of the runs in a folder and in the folders in it (those of sweeps), by name; or of itself.

    Raises InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; name one that holds runs (output_dir of the config).")
    if is_run(folder):
        return {folder.resolve().name: folder}
    found = {}
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if is_run(child):
            found[child.name] = child
        else:
            inside = sorted(path for path in child.iterdir() if path.is_dir() and is_run(path))
            found |= {f"{child.name}/{path.name}": path for path in inside}
    return found


def read_named(names: Sequence[str], outputs: Path = Path("outputs")) -> list[Run]:
    """Read runs given as folders, as names under `outputs`, or as files of evaluations.

    Each gets a name of its own: its folder's or, where two would be the same, the text given. Raises InputError.
    """
    places = [_place(name, outputs) for name in names]
    if len({place.resolve() for place in places}) < len(places):
        raise InputError(f"A run is named twice: {', '.join(names)}.")
    short = [_short_name(place.resolve()) for place in places]
    labels = short if len(set(short)) == len(short) else names
    return [
        Run(label, place, evaluations=[read_evaluation(place)]) if place.is_file() else read_run(place, label)
        for place, label in zip(places, labels, strict=True)
    ]


def _short_name(place: Path) -> str:
    if place.is_dir():
        return place.name
    return f"{place.parents[1].name}/{place.stem}" if place.parent.name == EVALUATIONS else place.stem


def _place(name: str, outputs: Path) -> Path:
    for place in (Path(name), outputs / name):
        if place.exists():
            return place
    known = find_runs(outputs) if outputs.is_dir() else {}
    raise InputError(f"There is no run '{name}', neither as a path nor in {outputs}/.{did_you_mean(name, known)}")


# ---- how far runs have come ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Success:
    """Successes in closed loop."""

    successes: int
    episodes: int
    rate: float
    interval: tuple[float, float]  # 95%


@dataclass(frozen=True)
class RunSummary:
    """One line of `atlas runs list`."""

    name: str
    path: Path
    state: State
    steps: int  # optimizer steps done; of a run of learning, steps in the environment
    total_steps: int | None  # None where the config counts in epochs
    best_metric: str  # by which the best checkpoint is chosen
    best_value: float | None
    best_step: int | None
    final_success: Success | None  # at the end of a finished run
    val_loss: float | None  # the latest
    started: float | None  # seconds since 1970

    def to_dict(self) -> dict[str, Any]:
        success = self.final_success
        return {
            "name": self.name,
            "path": str(self.path),
            "state": self.state,
            "steps": self.steps,
            "total_steps": self.total_steps,
            "best_metric": self.best_metric,
            "best_value": self.best_value,
            "best_step": self.best_step,
            "final_success": None
            if success is None
            else {
                "successes": success.successes,
                "episodes": success.episodes,
                "success_rate": success.rate,
                "ci95": list(success.interval),
            },
            "val_loss": self.val_loss,
            "started": None
            if self.started is None
            else time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.started)),
        }


def summarize(run_dir: Path, name: str) -> RunSummary:
    """Summarize how far a run has come, and what it has reached. Raises InputError if it is damaged."""
    config, scalars = _read_config(run_dir / CONFIG), read_all_scalars(run_dir)
    steps = max((points[-1][0] for tag, points in scalars.items() if tag.startswith("train/")), default=0)
    steps = max(steps, _checkpoint_step(run_dir))
    learned = (run_dir / LEARNING).is_file() or _learned(run_dir).is_file()
    if learned:
        steps = _steps_in_world(run_dir, scalars) or steps
    total = None if learned else config.get("training", {}).get("max_steps")
    state = _state(run_dir, steps, total)
    metric = config.get("model_management", {}).get("best_model_metric", "auto")
    if metric == "auto":
        measured = [name for name in ("eval/success_rate", "eval/mean_reward") if name in scalars]
        metric = next(iter(measured), "val/loss")
    best_value, best_step = _last(scalars, "best_model/value"), _last(scalars, "best_model/step")
    return RunSummary(
        name,
        run_dir,
        state,
        steps,
        total,
        metric,
        best_value,
        None if best_step is None else int(best_step),
        _final_success(run_dir) if state == "finished" else None,
        _last(scalars, "val/loss"),
        _started(run_dir),
    )


def _last(scalars: Mapping[str, Points], tag: str) -> float | None:
    return scalars[tag][-1][1] if tag in scalars else None


def _checkpoint_step(run_dir: Path) -> int:
    name = link_target(run_dir / "checkpoints" / "latest") or ""
    return int(name.removeprefix("step_")) if re.fullmatch(r"step_\d+", name) else 0


def _state(run_dir: Path, steps: int, total: int | None) -> State:
    """finished: to its last step, with its results; running: its process logs; stopped: its last step is saved, so
    that resuming loses nothing; unfinished: it ended otherwise.
    """
    if (run_dir / RESULTS).exists() and (total is None or steps >= total):
        return "finished"
    if any(_is_being_written(run_dir, file) for file in _event_files(run_dir)):
        return "running"
    return "stopped" if 0 < steps <= _checkpoint_step(run_dir) else "unfinished"


def _event_files(run_dir: Path) -> list[Path]:
    return [file for folder in boards(run_dir) for file in event_files(folder)]


def _is_being_written(run_dir: Path, file: Path) -> bool:
    """Whether the process named in an event file's name still logs to this run.

    Such a process keeps train.log open (tensorboard opens its own files again for every flush). A file of another
    machine counts as being written as long as it grows.
    """
    import psutil

    parts = _EVENT_FILE.fullmatch(file.name)
    if parts is None or parts["host"] != socket.gethostname():
        return time.time() - file.stat().st_mtime < _QUIET_SECONDS
    try:
        opened = {each.path for each in psutil.Process(int(parts["process"])).open_files()}
    except psutil.AccessDenied:  # another user's: all that can be known is that it lives
        return True
    except psutil.NoSuchProcess:
        return False
    return str((run_dir / LOG).resolve()) in opened


def _learned(run_dir: Path) -> Path:
    """The evaluation of what a run of learning has reached; its config's steps of training are another run's."""
    return run_dir / EVALUATIONS / f"{OF_LEARNING[-1]}.json"


def _steps_in_world(run_dir: Path, scalars: Mapping[str, Points]) -> int:
    """The steps in the world of a run of learning; 0 where it does not say."""
    try:
        return int(read_json(run_dir / RESULTS)["env_steps"])
    except (OSError, ValueError, KeyError, TypeError):  # it is not finished
        return int(_last(scalars, "actor/total_steps") or 0)


def _final_success(run_dir: Path) -> Success | None:
    if (file := _learned(run_dir)).is_file():
        found = read_evaluation(file)
        return Success(found.successes, found.episodes, found.success_rate, found.interval)
    file = run_dir / RESULTS
    try:
        final = read_json(file)["final_evaluation"]
        if final is None:
            return None
        low, high = final["ci95"]
        return Success(int(final["successes"]), int(final["episodes"]), float(final["success_rate"]), (low, high))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"The run's {file} is damaged.") from None


def _started(run_dir: Path) -> float | None:
    times = [float(parts["time"]) for file in _event_files(run_dir) if (parts := _EVENT_FILE.fullmatch(file.name))]
    return min(times, default=None)
