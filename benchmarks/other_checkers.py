"""Other checkers of LeRobot datasets beside `atlas data check`, on the same datasets with one fault each.

    python -m venv checkers && checkers/bin/pip install adduct deepen-grade lerobot-doctor lerobot-lint physlint rdq
    python benchmarks/other_checkers.py --data data/cubes --checkers checkers/bin [--episodes 12] [--out found.json]

Each planted fault of planted.py's data, and some that such checkers look for, is written as a LeRobot dataset, as is
the data without any. Each checker looks at all of them with its own command. What it reports of a fault is what it
reports there and not of the clean data. Prints the table of docs/benchmarks.md. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from changed_data import Changed
from machine import describe
from planted_bugs import DATA_PLANTS

from atlas.checks.data_check import check_data
from atlas.config import load_config
from atlas.data.convert import Conversion, convert
from atlas.data.formats import open_dataset
from atlas.errors import InputError

CLEAN = "nothing"
_BAD = {"warn", "warning", "error", "fail", "failed", "high", "medium", "critical", "major", "minor"}
_SEVERITIES = ("severity", "status", "level", "verdict", "result")
_NAMES = ("rule_id", "detector_id", "check_id", "rule", "check", "id", "message")
_NO_REPORT = "no report"
_TIMEOUT = 900  # seconds of a checker on one dataset


@dataclass(frozen=True)
class Checker:
    package: str
    command: tuple[str, ...]  # {data}: the dataset, {out}: the file of its report; without {out} it is on stdout


CHECKERS = (
    Checker("adduct", ("adduct", "scan", "{data}", "--full", "--json", "{out}")),
    Checker("deepen-grade", ("deepen", "grade", "{data}", "--json", "-o", "{out}")),
    Checker("lerobot-doctor", ("lerobot-doctor", "check", "{data}", "--json")),
    Checker("lerobot-lint", ("lelint", "check", "{data}", "--json", "{out}")),
    Checker("physlint", ("physlint", "check", "{data}", "--json-output", "{out}")),
    Checker("rdq", ("rdq", "check", "{data}", "--video", "--json", "{out}")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cubes")
    parser.add_argument("--checkers", type=Path, required=True, help="the folder of their commands")
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--only", nargs="*", help="faults of these names alone, and the clean data")
    parser.add_argument("--folder", type=Path, help="keep the datasets there")
    parser.add_argument("--out", type=Path, help="a JSON file with all that was found; what is in it is not done again")
    arguments = parser.parse_args()
    print(f"\n{describe()}\n")
    checkers = [checker for checker in CHECKERS if (arguments.checkers / checker.command[0]).exists()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        found: dict[str, dict[str, list[str]]] = {}
        if arguments.out is not None and arguments.out.exists():
            found = json.loads(arguments.out.read_text())
        for name, dataset in faults(arguments.data, arguments.episodes):
            if name not in found and (arguments.only is None or name in (CLEAN, *arguments.only)):
                copy = folder / re.sub(r"\W+", "_", name)
                found[name] = looked_at(dataset, copy, checkers, arguments.checkers)
                print(name, found[name], flush=True)
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps(found, indent=1))
    print(table(found, arguments.checkers))


def looked_at(dataset: Any, copy: Path, checkers: Sequence[Checker], commands: Path) -> dict[str, list[str]]:
    """{tool: what it reports} of a dataset, which is written as `copy` unless it is there. A fault that no LeRobot
    dataset can hold is said by the writer, and seen by nobody."""
    try:
        if not copy.exists():
            convert(dataset, copy, Conversion("lerobot", "h264"), workers=1)
    except InputError as error:
        return {"atlas data check": [f"is not written: {error}"], **{each.package: [] for each in checkers}}
    return {
        "atlas data check": sorted(of_atlas(copy)),
        **{each.package: sorted(of_other(each, commands, copy)) for each in checkers},
    }


# ---- the datasets ---------------------------------------------------------------------------------------------


def faults(data: str, episodes: int) -> Iterator[tuple[str, Any]]:
    """(what is wrong, the dataset); first the one without a fault."""
    whole = open_dataset(data)
    few = np.unique(np.linspace(0, len(whole) - 1, min(len(whole), episodes)).round().astype(int))
    yield CLEAN, Changed(whole, order=few.tolist())
    for plant in DATA_PLANTS:
        yield plant.name, plant.planted(whole, few)
    for name, change in FURTHER.items():
        yield name, Changed(whole, order=few.tolist(), **change)
    yield "an episode twice", Changed(whole, order=[*few.tolist()[:-1], int(few[0])])


def _all_but(rows: slice, change: Callable[[np.ndarray], None]) -> Callable[[np.ndarray], np.ndarray]:
    def changed(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        change(values[rows])
        return values

    return changed


def _jump(actions: np.ndarray) -> None:
    actions[..., 0] = 8.0


def _dead(actions: np.ndarray) -> None:
    actions[:, 1] = 0.0


def _leap(proprio: np.ndarray) -> None:
    proprio[..., :3] += 0.4


def _constant(images: np.ndarray) -> np.ndarray:
    return np.zeros_like(images)


FURTHER: dict[str, dict[str, Any]] = {
    "one action far beyond its range": {"actions": _all_but(slice(5, 6), _jump)},
    "an action that is always zero": {"actions": _all_but(slice(None), _dead)},
    "proprio leaps for a frame": {"proprio": _all_but(slice(5, 6), _leap)},
    "a camera that is black": {"images": lambda camera, i: _constant(i) if camera == "eye_in_hand" else i},
    "a camera that is frozen": {"images": lambda camera, i: i[:1].repeat(len(i), 0) if camera == "eye_in_hand" else i},
    "the end is missing": {"keep": slice(0, 12)},
    "an empty instruction": {"instruction": ""},
}


# ---- the checkers ---------------------------------------------------------------------------------------------


def of_atlas(copy: Path) -> set[str]:
    config = load_config(None, [f"data.path={copy}"])
    try:
        findings = check_data(config, env=None, replayed=4)
    except InputError as error:
        return {f"refused: {error}"}
    return {f"{f.check}: {f.message}" for f in findings if f.severity in ("warning", "error")}


def of_other(checker: Checker, commands: Path, copy: Path) -> set[str]:
    """The names of what it reports; those of one word, where it has such."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "report.json"
        command = [part.format(data=copy.resolve(), out=out) for part in checker.command]
        try:
            done = subprocess.run(
                [str(commands.resolve() / command[0]), *command[1:]],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                cwd=temporary,  # some leave files where they are called
            )
        except subprocess.TimeoutExpired:
            return {"did not end in time"}
        text = out.read_text() if out.exists() else done.stdout
    first = text.find("{")
    try:
        return set(named(json.loads(text[first:]))) if first >= 0 else {f"{_NO_REPORT}: {done.stderr.strip()[-200:]}"}
    except ValueError:
        return {f"{_NO_REPORT}: {done.stderr.strip()[-200:]}"}


def named(report: Any) -> Iterator[str]:
    """The findings in a report of any of these forms: objects that have a severity and a name, or a message, whose
    numbers are left out."""
    if isinstance(report, dict):
        told = [str(report[key]).lower() for key in _SEVERITIES if isinstance(report.get(key), str)]
        names = [str(report[key]) for key in _NAMES if isinstance(report.get(key), str)]
        if names and any(each in _BAD for each in told):
            yield re.sub(r"[-+]?\d[\d.,/%]*", "#", names[0])
        for value in report.values():
            yield from named(value)
    elif isinstance(report, list):
        for value in report:
            yield from named(value)


# ---- the table ------------------------------------------------------------------------------------------------


def table(found: dict[str, dict[str, list[str]]], commands: Path) -> str:
    tools = list(found[CLEAN])
    lines = [f"| planted | {' | '.join(tools)} |", f"|---|{'---|' * len(tools)}"]
    for name, by_tool in found.items():
        cells = []
        for tool in tools:
            said = {short(each) for each in by_tool[tool]}
            new = said if name == CLEAN else said - {short(each) for each in found[CLEAN][tool]}
            cells.append(", ".join(sorted(new)) or "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    versions = [f"{tool} {_version(tool, commands)}" for tool in tools if tool != "atlas data check"]
    return "\n".join([*lines, "", *versions])


def short(said: str) -> str:
    """Of Atlas's findings the check, of others the whole name."""
    if said.startswith(_NO_REPORT):
        return _NO_REPORT
    return f"`{said.partition(': ')[0]}`" if re.match(r"[\w.-]+(: |$)", said) else said[:60]


def _version(package: str, commands: Path) -> str:
    """As the Python says beside whose commands it is."""
    script = f"from importlib.metadata import version; print(version({package!r}))"
    try:
        done = subprocess.run([str(commands / "python"), "-c", script], capture_output=True, text=True)
    except OSError:
        return "(its version is not known here)"
    return done.stdout.strip() or "(its version is not known here)"


if __name__ == "__main__":
    main()
