"""Stopping in good order: a signal asks the loop to end after the step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from atlas.launch import launcher_folder

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last one is SLURM's warning


class Interrupted(Exception):
    """Training was stopped by a signal; its checkpoint is written. `exit_code` is 130 after SIGINT, else 143."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        # A warning asks for what SIGTERM asks for, only earlier.
        self.exit_code = 128 + (signal.SIGTERM if signal_number == signal.SIGUSR1 else signal_number)


class StopRequest:
    """The signal that asked for a stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def listening(numbers: Sequence[signal.Signals] = _SIGNALS) -> Iterator[StopRequest]:
    """Inside the block the first of the signals is only noted; a second one acts as it would without.

    In a rank of Atlas's launcher a second one changes nothing: a scheduler may signal every process of a job, and the
    launcher passes on what it gets, however late. It is the launcher that ends all ranks at its own second signal.

    Outside of the main thread (inside a sweep's agent, say) Python allows no handlers, and none are set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in numbers}
    launched = launcher_folder() is not None

    def note(number: int, _: FrameType | None) -> None:
        if request.signal is None:
            request.signal = number
        elif not launched:
            for each in numbers:
                signal.signal(each, before[each])
            signal.raise_signal(number)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number in numbers:
            signal.signal(number, before[number])
