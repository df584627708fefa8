"""Important lines of Atlas, each with a way to break it, what that means, and the tests that must notice.

One module for each part of Atlas. A row is maintained with the code it breaks: when the code changes, so does the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from broken_lines import checks, command, data, pi, policy, published, rollout, saving, serving, tracking, training
from broken_lines.row import Broken

PARTS = (policy, published, pi, training, saving, data, checks, rollout, serving, tracking, command)
ALL = tuple(row for part in PARTS for row in part.ROWS)


def out_of_date(rows: Sequence[Broken], root: Path) -> list[str]:
    """What is wrong with the list itself, one line per row: its text does not occur exactly once in the file, or its
    tests do not exist."""
    texts: dict[str, str] = {}

    def text_of(name: str) -> str:
        if name not in texts:
            file = root / name
            texts[name] = file.read_text(encoding="utf-8") if file.is_file() else ""
        return texts[name]

    problems = []
    for row in rows:
        count = text_of(row.file).count(row.old)
        if count != 1:
            problems.append(f"{row.file}: {count} times, expected once: {row.old!r} ({row.meaning})")
        if row.old == row.new:
            problems.append(f"{row.file}: nothing is broken: {row.old!r} ({row.meaning})")
        for test in row.tests:
            file, _, name = test.partition("::")
            if f"def {name.partition('[')[0]}(" not in text_of(file) if name else not text_of(file):
                problems.append(f"{test} is not there: it should notice that {row.meaning} ({row.file})")
    return problems
