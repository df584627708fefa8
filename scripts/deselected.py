"""A pytest plugin: names the tests that a selection left out, where pytest gives their number only."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

_deselected: list[str] = []


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Remember what is left out."""
    _deselected.extend(item.nodeid for item in items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List it."""
    if _deselected:
        terminalreporter.section("deselected")
        for name in _deselected:
            terminalreporter.write_line(name)
