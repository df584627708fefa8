"""Stopping in good order: a signal asks the loop to end after the step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Training was stopped by a signal; its checkpoint is written. `exit_code` is 130 or 143, as shells expect."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class StopRequest:
    """The signal that asked for a stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def listening(numbers: Sequence[signal.Signals] = _SIGNALS) -> Iterator[StopRequest]:
    """Inside the block the first SIGINT or SIGTERM is only noted; a second one acts as it would without.

    Outside of the main thread (inside a sweep's agent, say) Python allows no handlers, and none are set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _: FrameType | None) -> None:
        request.signal = number
        for each in numbers:
            signal.signal(each, before[each])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number in numbers:
            signal.signal(number, before[number])
