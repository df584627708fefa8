"""The form of a row in the list."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Broken:
    """A line, and how it is broken.

    file: relative to the root. old: text that occurs in it exactly once. new: its replacement. meaning: what is then
    wrong, in words. tests: files, or tests in files (`tests/x.py::test_y`), at least one of which must fail.
    """

    file: str
    old: str
    new: str
    meaning: str
    tests: tuple[str, ...]
    part: str = ""


def of_part(part: str, *rows: tuple[str, str, str, str, str]) -> tuple[Broken, ...]:
    """Rows of (file, old, new, meaning, tests separated by spaces)."""
    return tuple(Broken(file, old, new, meaning, tuple(tests.split()), part) for file, old, new, meaning, tests in rows)
