"""Whether the tests would notice: breaks important lines one at a time, and runs the tests that should fail.

    python benchmarks/mutants.py [--only PATTERN] [--jobs N] [--results FILE]

The lines, and what breaking them means, are in benchmarks/broken_lines/. Each is broken in a copy of the tree, never in
yours. Tests run in a child that is forked from a process which has imported the large packages, but nothing of Atlas.
They are first run with nothing broken: a test that fails then proves nothing.

A line is noticed if a test fails, crashes, or takes longer than it may. Prints a table by part of Atlas and, last, the
survivors; the exit code is 1 if there is one, and 2 if the list is out of date. Results stay in the results file
(outputs/mutants.jsonl) until the broken file, its tests or the row changes, so that a run continues where it was
stopped; delete the file to begin again. Not for Windows, which cannot fork.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from broken_lines import ALL, Broken, out_of_date

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("pytest", "hypothesis", "numpy", "torch", "accelerate", "pydantic", "yaml", "typer", "h5py", "av", "PIL")
HEAVY += ("pyarrow.parquet", "pyarrow.dataset", "safetensors.torch", "psutil", "tqdm", "torch.distributed.fsdp")
_SECONDS = 400  # that the tests of one row may take
_SECONDS_UNBROKEN = 3600  # all tests, one after the other
_PASSED, _FAILED, _NO_COLLECTION = 0, 1, (2, 3, 4, 5)  # pytest's exit codes
_LINES_SHOWN = 15


@dataclass(frozen=True)
class Verdict:
    """what: noticed, survived, or unfair if the tests could not be run at all. seconds: how long it took."""

    what: str
    why: str
    seconds: float


# ---- a test run in a forked child ------------------------------------------------------------------------


@dataclass
class Child:
    """A pytest that runs in a tree, in its own process group; `log` gets its output."""

    process: int
    log: Path
    started: float
    deadline: float

    @classmethod
    def start(cls, tree: Path, tests: Sequence[str], seconds: float, unbroken: bool = False) -> Child:
        log = tree.with_suffix(".log")
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            _run_pytest(tree, log, tests if unbroken else ["-x", *tests], unbroken)
        return cls(process, log, time.monotonic(), time.monotonic() + seconds)

    def verdict(self) -> Verdict | None:
        """How it ended; None while it runs."""
        done, status = os.waitpid(self.process, os.WNOHANG)
        late = time.monotonic() > self.deadline
        if not done and not late:
            return None
        self._end_group()
        if not done:
            os.waitpid(self.process, 0)
        seconds = time.monotonic() - self.started
        if not done:
            return Verdict("noticed", f"no end after {seconds:.0f} s", seconds)
        code = os.waitstatus_to_exitcode(status)
        if code in _NO_COLLECTION:
            return Verdict("unfair", f"pytest ended with {code}:\n{self._end_of_log()}", seconds)
        if code == _PASSED:
            return Verdict("survived", self._end_of_log().splitlines()[-1], seconds)
        return Verdict("noticed", self._first_failure() if code == _FAILED else f"crashed with {code}", seconds)

    def _end_group(self) -> None:
        try:
            os.killpg(self.process, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _end_of_log(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing was printed"]
        return "\n".join(lines[-_LINES_SHOWN:])

    def _first_failure(self) -> str:
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", self.log.read_text("utf-8", errors="replace"), re.MULTILINE)
        return str(failed[0]) if failed else self._end_of_log().splitlines()[-1]


def _run_pytest(tree: Path, log: Path, arguments: Sequence[str], unbroken: bool) -> None:
    """In the child; does not return."""
    code = 3
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        home = str(Path(__file__).parent)
        sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", home, str(ROOT), str(tree)))]
        os.environ["PYTHONPATH"] = str(tree)
        if not unbroken:  # nobody must find what was compiled from a broken file
            sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
        import pytest

        plain = [
            "-q",
            "-m",
            "not slow",
            "--tb=line",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            str(log.with_suffix("")) + ".tmp",
        ]
        code = int(pytest.main([*plain, *arguments]))
        mine = sys.modules.get("atlas")
        if mine is not None and not str(mine.__file__).startswith(str(tree)):
            print(f"the tests were of {mine.__file__}")
            code = 3
        sys.stdout.flush()
    finally:
        os._exit(code)


# ---- trees -----------------------------------------------------------------------------------------------


def copy_tree(source: Path, target: Path) -> None:
    """Copy the files that git tracks, or would add, without its history."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def break_line(tree: Path, row: Broken) -> None:
    file = tree / row.file
    text = file.read_text(encoding="utf-8")
    assert text.count(row.old) == 1, row
    file.write_text(text.replace(row.old, row.new), encoding="utf-8")
    os.utime(file, (0, 0))  # Python tells by the second whether a compiled file belongs to this one


def mend(tree: Path, source: Path, row: Broken) -> None:
    shutil.copy2(source / row.file, tree / row.file)


def known_as(source: Path, row: Broken) -> str:
    """A name for a row and everything that its verdict depends on: the broken file and the tests."""
    files = {row.file, *(test.partition("::")[0] for test in row.tests), "tests/conftest.py"}
    texts = [(source / file).read_bytes() for file in sorted(files) if (source / file).is_file()]
    return hashlib.sha256(repr((row, texts)).encode()).hexdigest()[:16]


# ---- all of them -----------------------------------------------------------------------------------------


def examine(
    rows: Sequence[Broken],
    source: Path,
    work: Path,
    jobs: int = 1,
    results: Path | None = None,
    seconds: float = _SECONDS,
) -> dict[Broken, Verdict]:
    """Break each row in copies of `source` below `work`, as many at once as there are jobs."""
    copy_tree(source, work / "unbroken")  # so that changes to the source meanwhile have no effect here
    source = work / "unbroken"
    verdicts = _remembered(rows, source, results)
    waiting = [row for row in reversed(rows) if row not in verdicts]
    free = [work / f"tree_{number}" for number in range(min(jobs, len(waiting)))]
    if waiting:
        shutil.copytree(source, free[0])
        failing = _failing_unbroken(waiting, free[0])
        for tree in free[1:]:
            shutil.copytree(free[0], tree, symlinks=True)  # including compiled files
        for row in [row for row in waiting if any(_is_part_of(test, failing) for test in row.tests)]:
            waiting.remove(row)
            verdicts[row] = Verdict("unfair", "its tests fail with nothing broken", 0.0)
            _say(row, verdicts[row], len(verdicts), len(rows))
    running: dict[Broken, tuple[Child, Path]] = {}
    while waiting or running:
        while waiting and free:
            row, tree = waiting.pop(), free.pop()
            break_line(tree, row)
            running[row] = Child.start(tree, row.tests, seconds), tree
        for row, (child, tree) in list(running.items()):
            verdict = child.verdict()
            if verdict is not None:
                del running[row]
                mend(tree, source, row)
                free.append(tree)
                verdicts[row] = verdict
                _remember(row, verdict, source, results)
                _say(row, verdict, len(verdicts), len(rows))
        time.sleep(0.02)
    return {row: verdicts[row] for row in rows}


def _failing_unbroken(rows: Sequence[Broken], tree: Path) -> set[str]:
    """The tests that fail in a tree in which nothing is broken."""
    tests = sorted({test for row in rows for test in row.tests})
    print(f"{len(tests)} tests and files of tests, with nothing broken", flush=True)
    child = Child.start(tree, tests, _SECONDS_UNBROKEN, unbroken=True)
    while (verdict := child.verdict()) is None:
        time.sleep(0.1)
    if verdict.what == "unfair":
        sys.exit(f"With nothing broken, {verdict.why}")
    print(f"{verdict.why} ({verdict.seconds:.0f} s)", flush=True)
    return set(re.findall(r"^(?:FAILED|ERROR) (\S+)", child.log.read_text("utf-8", errors="replace"), re.MULTILINE))


def _is_part_of(test: str, failing: set[str]) -> bool:
    """Whether one of the failing tests is this one, one of its parameters, or in this file."""
    return any(each == test or each.startswith((f"{test}[", f"{test}::")) for each in failing)


def _remembered(rows: Sequence[Broken], source: Path, results: Path | None) -> dict[Broken, Verdict]:
    if results is None or not results.is_file():
        return {}
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    known = {line.pop("row"): Verdict(**line) for line in lines}
    return {row: known[name] for row in rows if (name := known_as(source, row)) in known}


def _remember(row: Broken, verdict: Verdict, source: Path, results: Path | None) -> None:
    if results is None or verdict.what == "unfair":
        return
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"row": known_as(source, row), **vars(verdict)}) + "\n")


def _say(row: Broken, verdict: Verdict, number: int, of: int) -> None:
    print(f"{number:3}/{of} {verdict.what:8} {verdict.seconds:5.1f} s  {row.file}: {row.meaning}", flush=True)


def report(verdicts: dict[Broken, Verdict]) -> int:
    """Print the table and the survivors; returns the exit code."""
    print("\n| part | lines broken | noticed |\n|---|---|---|")
    for part in dict.fromkeys(row.part for row in verdicts):
        mine = [verdict.what for row, verdict in verdicts.items() if row.part == part]
        print(f"| {part} | {len(mine)} | {mine.count('noticed')} |")
    print(f"| all | {len(verdicts)} | {sum(v.what == 'noticed' for v in verdicts.values())} |")
    others = {row: verdict for row, verdict in verdicts.items() if verdict.what != "noticed"}
    for row, verdict in others.items():
        print(f"\n{verdict.what}: {row.file}: {row.meaning}")
        print(
            "\n".join([f"- {line}" for line in row.old.splitlines()] + [f"+ {line}" for line in row.new.splitlines()])
        )
        print(f"  {' '.join(row.tests)}\n  {verdict.why}")
    return 1 if others else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", metavar="PATTERN", help="rows whose file or meaning matches this regular expression")
    parser.add_argument("--jobs", type=int, default=2, help="rows that are tried at once (2)")
    parser.add_argument("--results", type=Path, default=ROOT / "outputs" / "mutants.jsonl")
    asked = parser.parse_args()
    rows = [row for row in ALL if asked.only is None or re.search(asked.only, f"{row.part} {row.file} {row.meaning}")]
    problems = out_of_date(rows, ROOT)
    if problems:
        print("The list is out of date:", *problems, sep="\n")
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for package in HEAVY:
        __import__(package)
    assert not any(name == "atlas" or name.startswith("atlas.") for name in sys.modules)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="atlas-mutants-") as folder:
        code = report(examine(rows, ROOT, Path(folder), asked.jobs, asked.results))
    print(f"\n{len(rows)} lines in {(time.monotonic() - start) / 60:.1f} minutes")
    return code


if __name__ == "__main__":
    sys.exit(main())
