"""benchmarks/mutants.py: its list of broken lines is up to date, and it tells noticed lines from unnoticed ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, sys
import pytest  # once, and not in each child
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mutants
from broken_lines import Broken

def row(old, new, *tests):
    return Broken("thing.py", old, new, new, tests, "part")

rows = [
    row("a + b", "a - b", "test_thing.py::test_sum"),
    row("a + b", "b + a", "test_thing.py::test_sum"),
    row("return x", "__import__('os')._exit(9)", "test_thing.py::test_same"),
    row("a + b", "a * b", "test_thing.py::test_fails_anyhow"),
    row("def same", "def same(", "test_thing.py::test_same"),
]
source, work = Path("project"), Path("work")
for some in (rows, rows[:3]):
    verdicts = mutants.examine(some, source, work, 2, Path("results.jsonl"))
    print("verdicts", json.dumps([verdicts[each].what for each in some]))
    print("exit code", mutants.report(verdicts))
"""


def test_every_line_is_there_just_once_and_so_are_the_tests_that_should_notice() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from broken_lines import ALL, out_of_date

    assert out_of_date(ALL, ROOT) == []
    assert len(ALL) >= 100 and len({(row.file, row.old, row.new) for row in ALL}) == len(ALL)
    assert all(row.tests and row.meaning and row.part for row in ALL)


def test_what_is_noticed_is_told_from_what_is_not(tmp_path: Path) -> None:
    """In a small project: a line that matters, one that does not, one that ends the process, a test that fails with
    nothing broken, and text that is no longer Python. A second run knows the first one's results."""
    project = tmp_path / "project"
    project.mkdir()
    code = "def total(a, b):\n    return a + b\n\n\ndef same(x):\n    return x\n"
    (project / "thing.py").write_text(code)
    tests = "import thing\n\n\ndef test_sum():\n    assert thing.total(2, 3) == 5\n\n\n"
    tests += "def test_same():\n    assert thing.same(1) == 1\n\n\ndef test_fails_anyhow():\n    assert False\n"
    (project / "test_thing.py").write_text(tests)
    (project / "pytest.ini").write_text("[pytest]\n")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)

    command = [sys.executable, "-c", SCRIPT, str(ROOT / "benchmarks")]
    plain = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr
    said = [json.loads(line.removeprefix("verdicts ")) for line in done.stdout.splitlines() if "verdicts" in line]
    assert said == [["noticed", "survived", "noticed", "unfair", "unfair"], ["noticed", "survived", "noticed"]]
    assert done.stdout.count("exit code 1") == 2 and "| part | 5 | 2 |" in done.stdout
    assert done.stdout.count("with nothing broken") == 2  # and not for what is known
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3  # what cannot be said is tried again
    assert (project / "thing.py").read_text() == code
