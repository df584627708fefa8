"""Keeping this process out of the real-time scheduling class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def no_real_time() -> Iterator[None]:
    """Put the process's threads that are real-time afterwards back into the usual class.

    For encoding with SVT-AV1: where root runs it, it makes the calling thread and its own ones real-time (SCHED_FIFO,
    priority 99). The thread stays so when the film is done, and processes it starts are so, too; on a machine without a
    spare core nothing else runs then, and processes that wait for each other by spinning wait for ever.
    """
    try:
        yield
    finally:
        leave_real_time()


def leave_real_time() -> None:
    """Do so now: also while an encoder is open, once it has taken its first frame and so has started its threads."""
    if not hasattr(os, "sched_setscheduler"):
        return  # not Linux, where the encoder does the same by another call and for its own threads only
    for task in Path("/proc/self/task").iterdir():
        thread = int(task.name)
        with suppress(ProcessLookupError):  # a thread that has ended meanwhile
            if os.sched_getscheduler(thread) in (os.SCHED_FIFO, os.SCHED_RR):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
