"""Lines that are said once, however many parts and worker processes of a program would say them.

Workers tell the process that started them, which says it here. What shows lines to somebody, a command or a run's log,
keeps for as long as it does so what it has shown; where nothing does, notices are log lines like others.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGE = logging.getLogger("atlas")
_NOTICES = logging.getLogger("atlas.notices")


def notice(text: str, *values: object) -> None:
    """Say a line, whose %s stand for the values."""
    _NOTICES.info(text, *values)


@contextmanager
def said_once() -> Iterator[None]:
    """Within the block, a line that has been said in it is not said again; nor in a block within this one."""
    if any(isinstance(each, _SaidOnce) for each in _NOTICES.filters):
        yield
        return
    once = _SaidOnce()
    _NOTICES.addFilter(once)
    try:
        yield
    finally:
        _NOTICES.removeFilter(once)


@contextmanager
def shown_to_the_user(formatter: logging.Formatter) -> Iterator[None]:
    """Within the block, notices go to stderr, each once, where no run's log does it; of several ranks the first's."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    handler, level = logging.StreamHandler(sys.stderr), _NOTICES.level
    handler.setFormatter(formatter)
    handler.addFilter(lambda _: not any(isinstance(other, logging.StreamHandler) for other in _PACKAGE.handlers))
    _NOTICES.addHandler(handler)
    _NOTICES.setLevel(logging.INFO)
    try:
        with said_once():
            yield
    finally:
        _NOTICES.removeHandler(handler)
        _NOTICES.setLevel(level)


class _SaidOnce(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        new = line not in self._said
        self._said.add(line)
        return new
