"""Stopping properly: a signal asks the loop to end after the step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from atlas.launch import launcher_folder
from atlas.system.process_control.terminal import leave_lost_terminal

# SIGUSR1 is SLURM's warning; SIGHUP says that the terminal is gone.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Interrupted(Exception):
    """Training was stopped by a signal; its checkpoint is written. `exit_code` is 130 after SIGINT, otherwise 143."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        # The other signals ask for the same as SIGTERM.
        self.exit_code = 128 + (signal.SIGINT if signal_number == signal.SIGINT else signal.SIGTERM)


class StopRequest:
    """The signal that asked for a stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def listening(numbers: Sequence[signal.Signals] = _SIGNALS) -> Iterator[StopRequest]:
    """Inside the block the first of the signals is only noted; a second one acts as usual.

    In a rank of Atlas's launcher a second one changes nothing: a scheduler may signal every process of a job, and the
    launcher passes on what it gets, however late. The launcher itself ends all ranks at its own second signal.

    Outside the main thread (for example inside a sweep's agent) Python allows no handlers, and none are set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # Under nohup, the end of the terminal must change nothing.
    numbers = [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in numbers}
    launched = launcher_folder() is not None

    def note(number: int, _: FrameType | None) -> None:
        leave_lost_terminal()
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
