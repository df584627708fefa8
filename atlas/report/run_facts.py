"""The facts about a run, read from whatever files its folder has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atlas.checks.acting.bug_walk import DIAGNOSIS
from atlas.errors import InputError
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.filming.film_choice import OVERVIEW
from atlas.rollout.success_report import FORMAT
from atlas.runs.run_directory import LEARNING, OF_LEARNING, RESULTS, Run, RunSummary, evaluation_files, summarize
from atlas.runs.run_origin import RunOrigin, read_origin
from atlas.system.documents import read_json
from atlas.system.files import follow
from atlas.tracking.sinks.console import LOG

_VERSIONS = range(1, FORMAT + 1)  # of results.json; a file without a version has the first
_FILM = re.compile(
    r"(?:(?P<rank>best|median|worst)_)?episode_(?P<number>\d+)_(?:.*_)?(?P<outcome>success|failure|ended)\.mp4"
)
_WARNING = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?:WARNING:? )(?P<text>.*)$")
_MOST_WARNINGS = 20
_LARGEST_LOG = 4 * 2**20  # bytes


@dataclass(frozen=True)
class Film:
    path: Path
    number: int  # of the episode in its evaluation
    verdict: str  # success, failure, or ended where the world does not report success
    rank: str | None  # best, median or worst


@dataclass(frozen=True)
class PlayedEvaluation:
    """The contents of an evaluation's file, with its films."""

    values: Mapping[str, Any]
    films: Sequence[Film]
    overview: Path | None = None  # the film of its worst failures
    of_learning: str | None = None  # before, control or after; None for a run of training

    @property
    def purpose(self) -> str:
        return str(self.values["purpose"])

    @property
    def probes(self) -> tuple[str, ...]:
        return tuple(map(str, self.values.get("probes", ())))

    @property
    def step(self) -> int | None:
        return None if self.values.get("step") is None else int(self.values["step"])

    @property
    def judged(self) -> bool:
        """Whether the world reports success; where it does not, only rewards mean something."""
        return any(outcome.get("judged", True) for outcome in self.outcomes)

    @property
    def mean_reward(self) -> float:
        return sum(float(outcome.get("reward", 0.0)) for outcome in self.outcomes) / len(self.outcomes)

    @property
    def outcomes(self) -> Sequence[Mapping[str, Any]]:
        return list(self.values["outcomes"])


@dataclass(frozen=True)
class RunFacts:
    """The facts about one run. Those that its folder does not have are None or empty."""

    run: Run
    summary: RunSummary | None  # None for an evaluation without a run
    results: Mapping[str, Any]  # results.json, or a file of `atlas eval --out`
    evaluations: Sequence[PlayedEvaluation]
    processor: PolicyProcessor | None
    origin: RunOrigin
    warnings: Sequence[str]
    diagnosis: Mapping[str, Any] | None
    learned: Mapping[str, Any] = field(default_factory=dict)  # learning.json: what `atlas learn` learned from what
    notes: list[str] = field(default_factory=list)  # messages about files that could not be read

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def headline(self) -> PlayedEvaluation | None:
        """The evaluation by which a run is judged: the final one, else one of `atlas eval`, else the last that selected
        a checkpoint."""
        plain = [each for each in self.evaluations if not each.probes]
        if self.results.get("kept") == "before":  # learning has made the policy worse
            plain = [each for each in plain if each.of_learning in (None, "before")]
        for purpose in ("final", "report", "selection"):
            found = [each for each in plain if each.purpose == purpose]
            if found:
                return found[-1]
        return None

    def twin(self, probe: str) -> Mapping[str, Any] | None:
        """The same evaluation with falsified inputs (`blind`, `instruction_shuffle`); None where there is none."""
        probes = self.results.get("probes")
        if isinstance(probes, Mapping) and isinstance(probes.get(probe), Mapping):
            return dict(probes[probe])
        found = [each for each in self.evaluations if each.probes == (probe,)]
        return found[-1].values if found else None


def gather(run: Run) -> RunFacts:
    """The facts about a run. Raises InputError for files that are damaged, or of a later version."""
    folder = run.path
    if not folder.is_dir():
        played = _played(folder, ())
        return RunFacts(run, None, played.values, [played], None, RunOrigin(), [], None)
    notes: list[str] = []
    results = _read_results(folder / RESULTS)
    return RunFacts(
        run,
        summarize(folder, run.name) if run.config else None,
        results,
        _evaluations(run),
        _processor(folder, notes),
        read_origin(folder),
        _warnings(folder / LOG),
        _document(folder / DIAGNOSIS),
        _document(folder / LEARNING) or {},
        notes,
    )


def _read_results(file: Path) -> dict[str, Any]:
    found = _document(file) or {}
    version = found.get("format", found.get("version", 1))
    if version not in _VERSIONS:
        raise InputError(
            f"{file} has format version {version!r}, but this Atlas reads versions {_VERSIONS[0]} to {_VERSIONS[-1]}: "
            "read the run with the Atlas that wrote it, or with a later one."
        )
    return found


def _document(file: Path) -> dict[str, Any] | None:
    try:
        found = read_json(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid JSON"
        raise InputError(f"The run's {file} cannot be read: {reason}. Move it away to report without it.") from None
    if not isinstance(found, dict):
        raise InputError(f"The run's {file} is damaged: it should hold one object. Move it away to report without it.")
    return found


def _evaluations(run: Run) -> list[PlayedEvaluation]:
    """The evaluations in the run's folder, by ascending step."""
    films: dict[str, list[Film]] = {}
    overviews: dict[str, Path] = {}
    for folder in _film_folders(run):
        if (together := folder / OVERVIEW).is_file() and not together.is_symlink():
            overviews[folder.name] = together
        films[folder.name] = [film for path in sorted(folder.glob("*.mp4")) if (film := _film(path)) is not None]
    found = []
    for file in evaluation_files(run.path):
        purpose, _, rest = file.stem.partition("_step_")
        name = f"step_{rest}" if purpose == "selection" else file.stem
        of_learning = file.stem if file.stem in OF_LEARNING else None
        played = _played(file, films.get(name, ()))
        found.append(replace(played, overview=overviews.get(name), of_learning=of_learning))
    return sorted(found, key=lambda each: each.step or 0)


def _played(file: Path, films: Sequence[Film]) -> PlayedEvaluation:
    values = read_json(file)  # `read_run` has checked it, unless its name is another
    try:
        for outcome in values["outcomes"]:
            _ = int(outcome["seed"]), str(outcome["instruction"]), bool(outcome["success"]), int(outcome["length"])
        low, high = map(float, values["ci95"])
        _ = str(values["purpose"]), float(values["success_rate"]), int(values["successes"]), int(values["episodes"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file} cannot be read as the outcomes of an evaluation. Move it away to go on.") from None
    return PlayedEvaluation(values, films)


def _film_folders(run: Run) -> list[Path]:
    elsewhere = run.config.get("evaluation", {}).get("record_path") if isinstance(run.config, dict) else None
    root = Path(str(elsewhere)) / run.path.name if elsewhere else run.path / "videos"
    return sorted(path for path in root.glob("*step_*") if path.is_dir())


def _film(path: Path) -> Film | None:
    found = _FILM.fullmatch(path.name)
    if found is None or path.is_symlink():
        return None
    return Film(path, int(found["number"]), found["outcome"], found["rank"])


def _processor(folder: Path, notes: list[str]) -> PolicyProcessor | None:
    """The best checkpoint's processor, else the latest's."""
    for place in (folder / "checkpoints" / "best", folder / "checkpoints" / "latest", folder / "best"):
        file = follow(place) / "policy" / "processor.json"
        if file.is_file():
            try:
                return PolicyProcessor.load(file)
            except InputError as error:
                notes.append(f"The policy's facts are left out: {error}")
                return None
    return None


def _warnings(log: Path) -> list[str]:
    """Training's warnings, each once, in their order."""
    try:
        with log.open("rb") as file:
            text = file.read(_LARGEST_LOG).decode("utf-8", "replace")
    except OSError:
        return []
    found = (_WARNING.match(line) for line in text.splitlines())
    return list(dict.fromkeys(match["text"] for match in found if match is not None))[:_MOST_WARNINGS]
