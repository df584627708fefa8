"""The output of verbs: one JSON object, or tables."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from atlas.system.files import finite
from atlas.system.process_control.notices import shown_to_the_user
from atlas.system.safe_text import printable


@contextmanager
def stdout_kept_for_the_report(as_json: bool) -> Iterator[None]:
    """Send everything printed meanwhile to stderr with --json, also from C libraries and worker processes."""
    if not as_json:
        yield
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def say(text: str, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print a text that may contain what others have written: data, names, answers of servers."""
    print(printable(text), end=end, file=file, flush=flush)


def print_json(value: Any) -> None:
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    # JSON has its own escapes for what a terminal would obey; below U+0020 they are used already.
    print(re.sub(r"[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text))


@contextmanager
def log_lines_shown_as_text() -> Iterator[None]:
    """Print the package's warnings and notices, when logging is not set up, without keys or terminal control
    characters."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Text())
    with shown_to_the_user(_Text()):
        yield


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        from atlas.system.safe_text import redact

        return printable(redact(super().format(record)))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(printable(title)), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    Console().print(table)
