"""Progress on the terminal: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from atlas.system.safe_text import printable

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress_bar(title: str | None, total: int, done: int = 0) -> Iterator[Callable[[int], object]]:
    """Show the progress of `total` pieces on stderr; yields a function to call with the number just finished.

    Without a title nothing is shown.
    """
    if title is None:
        yield lambda _: None
        return
    title = printable(title)
    if sys.stderr.isatty():
        with _tqdm(title, total, done) as bar:
            yield bar.update
        return
    start = last = time.monotonic()
    first = done

    def line(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or done == total:
            last = now
            left = (now - start) / max(1, done - first) * (total - done)
            print(f"{title}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)

    yield line


@contextmanager
def training_bar(total: int, done: int, shown: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    """A bar of optimizer steps, on a terminal only; yields a function to call after each step with values to show."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _: None
        return
    import logging

    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm([logging.getLogger("atlas")]), _tqdm("training", total, done) as bar:

        def step(values: dict[str, float]) -> None:
            if values:
                bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
            bar.update(1)

        yield step


def _tqdm(title: str, total: int, done: int) -> Any:
    from tqdm import tqdm

    return tqdm(desc=title, total=total, initial=done, dynamic_ncols=True, mininterval=0.5, file=sys.stderr)
