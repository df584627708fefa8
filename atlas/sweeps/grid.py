"""Sweep files: what is varied, the name of each run, and the command that starts it. The format is wandb's."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas.config import Config, load_config
from atlas.errors import InputError
from atlas.runs.comparison import Better
from atlas.system.documents import read_yaml

METHODS = ("grid", "random", "bayes")
_GOALS: dict[str, Better] = {"minimize": "lower", "maximize": "higher"}
_KEYS = ("program", "command", "method", "parameters", "metric", "name", "description", "project", "entity")
_OWN_KEYS = ("run_name", "output_dir")  # set by `atlas sweep local` itself
_ARGUMENTS = "${args_no_hyphens}"
_TRAIN = "train.sh"
# Options that a run of a grid cannot have, and why.
_NOT_LOCAL = {
    "--resume": "every run of the grid resumes from its own latest checkpoint",
    "--log": "every run of the grid has a log in its folder",
    "--background": "the grid waits for its runs; start the grid itself in the background",
    "--debug": "it changes what the grid asks for; set training.max_steps instead",
}
# Distributions whose min and max are values; those of the others are logarithms, or they have none.
_VALUE_DISTRIBUTIONS = ("uniform", "int_uniform", "log_uniform_values", "inv_log_uniform_values")
_NAME_LENGTH = 120  # of a folder; with the hash and the files in it, below the file systems' limit of 255


@dataclass(frozen=True)
class Sweep:
    """The parts of a sweep file that are the same however it is run."""

    file: Path
    values: dict[str, Any]  # the whole file
    method: str
    parameters: dict[str, dict[str, Any]]  # {key of the config: how its values are chosen}
    metric: tuple[str, Better] | None  # what to optimise


@dataclass(frozen=True)
class Point:
    """One run of a grid."""

    name: str
    values: dict[str, Any]  # {key of the config: value}


def read_sweep(file: Path) -> Sweep:
    """Read a sweep file. Raises InputError that names the key."""
    try:
        values = read_yaml(file)
    except OSError as error:
        raise InputError(f"The sweep file {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"The sweep file {file} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"The sweep file {file} should hold keys such as 'method:' and 'parameters:'.")
    method, parameters = values.get("method"), values.get("parameters")
    if not isinstance(method, str) or method not in METHODS:
        raise _wrong(file, "method", f"it is {method!r}, expected one of {', '.join(METHODS)}")
    if not isinstance(parameters, dict) or not parameters:
        raise _wrong(file, "parameters", "it should hold keys of the config, each with its values: [1, 2] or value: 1")
    for key, choice in parameters.items():
        if not isinstance(key, str):
            raise _wrong(file, f"parameters.{key}", "it is not a key of the config, such as training.learning_rate")
        if not isinstance(choice, dict) or not choice:
            raise _wrong(file, f"parameters.{key}", f"it is {choice!r}, expected for example {{values: [1, 2]}}")
    return Sweep(file, values, method, parameters, _metric(file, values.get("metric")))


def _wrong(file: Path, key: str, what: str) -> InputError:
    return InputError(f"In the sweep file {file}: '{key}': {what}.")


def _metric(file: Path, metric: Any) -> tuple[str, Better] | None:
    if metric is None:
        return None
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise _wrong(file, "metric", "expected for example {name: val/loss, goal: minimize}")
    goal = metric.get("goal", "minimize")
    if not isinstance(goal, str) or goal not in _GOALS:
        raise _wrong(file, "metric.goal", f"it is {goal!r}, expected minimize or maximize")
    return metric["name"], _GOALS[goal]


# ---- grids -----------------------------------------------------------------------------------------------


def grid_points(sweep: Sweep) -> list[Point]:
    """Every combination of the values, in the order of the file; the last key varies fastest. Raises InputError."""
    if sweep.method != "grid":
        raise InputError(
            f"In the sweep file {sweep.file}: 'method': {sweep.method} needs wandb's server, which chooses the values: "
            f"run `atlas sweep create {sweep.file}`. On this machine alone, only the method grid is available."
        )
    for key in sweep.values:
        if key not in _KEYS:
            raise _wrong(sweep.file, key, f"a grid on this machine does not use it; it knows {', '.join(_KEYS)}")
    choices = {key: _values(sweep.file, key, choice) for key, choice in sweep.parameters.items()}
    swept = [key for key, choice in sweep.parameters.items() if "values" in choice]
    combinations = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    names = _names(sweep.file.stem, [{key: point[key] for key in swept} for point in combinations])
    return [Point(name, values) for name, values in zip(names, combinations, strict=True)]


def _values(file: Path, key: str, choice: dict[str, Any]) -> list[Any]:
    if key in _OWN_KEYS:
        raise _wrong(file, f"parameters.{key}", "the grid sets it itself; name the folder with --out")
    if set(choice) == {"value"}:
        return [choice["value"]]
    values = choice.get("values")
    if set(choice) != {"values"} or not isinstance(values, list) or not values:
        raise _wrong(file, f"parameters.{key}", f"a grid takes values: [1, 2] or value: 1, but this is {choice!r}")
    written = [json.dumps(value, default=str, sort_keys=True) for value in values]
    twice = [value for value, count in Counter(written).items() if count > 1]
    if twice:
        raise _wrong(file, f"parameters.{key}", f"its values contain {twice[0]} twice")
    return values


def _names(stem: str, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """`learning_rate=0.001,layers=2`: the values that vary, the ends of paths, in a form that folders can have."""
    if not points[0]:
        return [stem]
    short = _short_keys(list(points[0]))
    names = [",".join(f"{short[key]}={_text(value)}" for key, value in point.items()) for point in points]
    crowded = {name for name, count in Counter(names).items() if count > 1}
    return [
        f"{_cut(name)}-{_digest(point)}" if name in crowded or _cut(name) != name else name
        for name, point in zip(names, points, strict=True)
    ]


def _cut(name: str) -> str:
    """The name cut to a number of bytes, as folders' names are limited."""
    return name.encode()[:_NAME_LENGTH].decode(errors="ignore")


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """{key: its shortest unique ending}; for a key ending in `.name`, the name of its section."""
    parts = {key: key.removesuffix(".name").split(".") for key in keys}
    short = {}
    for key, own in parts.items():
        for length in range(1, len(own) + 1):
            end = own[-length:]
            if not any(other[-length:] == end for another, other in parts.items() if another != key):
                break
        short[key] = re.sub(r"[^\w.+-]", "-", ".".join(end))
    return short


def _text(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    text = Path(value).name if isinstance(value, str) else json.dumps(value, default=str)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def _digest(point: Mapping[str, Any]) -> str:
    written = json.dumps(dict(point), default=str, sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()[:8]


# ---- starting a run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The options that every run of a sweep is started with, according to the file's `command`."""

    options: list[str]  # of `atlas train`
    config: str | None  # the file that --config names
    overrides: list[str]  # key=value


def read_start(sweep: Sweep) -> Start | None:
    """Read what follows the program in `command`; None if it does not start Atlas. Raises InputError."""
    arguments = _after_program(sweep)
    if arguments is None:
        return None
    if _ARGUMENTS not in arguments:
        raise _wrong(sweep.file, "command", f"{_ARGUMENTS} is missing, so no run would get its values")
    options, config, overrides = [], None, []
    rest = iter(arguments)
    for part in rest:
        if part == _ARGUMENTS:
            continue
        if part.startswith("${args"):
            raise _wrong(sweep.file, "command", f"{part} is not key=value, which Atlas takes; write {_ARGUMENTS}")
        if part.partition("=")[0] == "--config":
            config = part.partition("=")[2] or next(rest, None)
        elif "=" in part and not part.startswith("-"):
            overrides.append(part)
        else:
            options.append(part)
    return Start(options, config, overrides)


def _after_program(sweep: Sweep) -> list[str] | None:
    command = sweep.values.get("command") or []
    if not isinstance(command, list):
        raise _wrong(sweep.file, "command", f"expected a list such as [bash, {_TRAIN}, '{_ARGUMENTS}']")
    command = [str(part) for part in command]
    program = str(sweep.values.get("program"))
    for i, part in enumerate(command):
        if Path(program if part == "${program}" else part).name == _TRAIN:
            return command[i + 1 :]
        if part == "train" and i and Path(command[i - 1]).name in ("atlas", "atlas.cli"):
            return command[i + 1 :]
    if Path(program).name == _TRAIN and not command:
        raise _wrong(sweep.file, "command", f"it is missing; write [${{env}}, bash, ${{program}}, '{_ARGUMENTS}']")
    return None


def check_values(sweep: Sweep, start: Start) -> None:
    """Raise InputError if a parameter is not a key of the config, or does not accept one of its values.

    For values that are drawn, the ends of the range are tried, unless they are logarithms.
    """
    tried = {key: _some_values(choice) for key, choice in sweep.parameters.items()}
    usual = {key: values[0] for key, values in tried.items() if values}
    for key, values in tried.items():
        for value in values:
            given = [_override(each, other) for each, other in {**usual, key: value}.items()]
            _load(sweep.file, f"{key}={value}", start.config, [*start.overrides, *given])


def _some_values(choice: Mapping[str, Any]) -> list[Any]:
    if isinstance(choice.get("values"), list):
        return list(choice["values"])
    if str(choice.get("distribution", "uniform")).removeprefix("q_") in _VALUE_DISTRIBUTIONS:
        return [choice[end] for end in ("value", "min", "max") if end in choice]
    return []


# ---- a run of a grid -------------------------------------------------------------------------------------


def local_start(sweep: Sweep) -> Start:
    """Return what the runs of a grid on this machine are started with; a file may do without `command`.

    --wandb is left out. Raises InputError for options that such a run cannot have.
    """
    start = read_start(sweep)
    if start is None:
        if sweep.values.get("command") or sweep.values.get("program"):
            raise _wrong(sweep.file, "command", f"a grid on this machine starts Atlas: {_TRAIN}, or `atlas train`")
        return Start([], None, [])
    for option in start.options:
        if option.partition("=")[0] in _NOT_LOCAL:
            raise _wrong(sweep.file, "command", f"{option} is not possible: {_NOT_LOCAL[option.partition('=')[0]]}")
    for part in (*start.options, *start.overrides):
        if "${" in part:
            raise _wrong(sweep.file, "command", f"a grid on this machine does not know {part}")
    return Start([option for option in start.options if option != "--wandb"], start.config, start.overrides)


def arguments_of(point: Point, start: Start, out: Path) -> list[str]:
    """Return what follows `atlas train` for a point: wandb stays off unless the file says otherwise."""
    config = [] if start.config is None else ["--config", start.config]
    return [*start.options, "--resume", "auto", *config, *_overrides(point, start, out)]


def config_of(sweep: Sweep, point: Point, start: Start, out: Path) -> Config:
    """The config of a point, without what options set. Raises InputError."""
    return _load(sweep.file, point.name, start.config, _overrides(point, start, out))


def _load(file: Path, values: str, config: str | None, overrides: Sequence[str]) -> Config:
    try:
        return load_config(config, overrides)
    except InputError as error:
        raise InputError(f"The sweep file {file} asks for {values}. {error}") from None


def _overrides(point: Point, start: Start, out: Path) -> list[str]:
    given = [_override(key, value) for key, value in point.values.items()]
    own = [_override("output_dir", str(out)), _override("run_name", point.name)]
    return ["wandb.enabled=false", *start.overrides, *given, *own]


def _override(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value, default=str, ensure_ascii=False)}"
