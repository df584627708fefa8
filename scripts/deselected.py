"""A pytest plugin: names the tests that a selection left out, where pytest only gives their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

_KEY = "deselected"
_deselected: dict[str, None] = {}  # in order, each once: with pytest-xdist every process collects, and leaves out


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Remember what is left out."""
    _deselected.update(dict.fromkeys(item.nodeid for item in items))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In one of pytest-xdist's processes: pass the list to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_KEY] = list(_deselected)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take such a process's list; one that has crashed has sent none."""
    _deselected.update(dict.fromkeys(getattr(node, "workeroutput", {}).get(_KEY, [])))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the list."""
    if _deselected:
        terminalreporter.section("deselected")
        for name in _deselected:
            terminalreporter.write_line(name)
