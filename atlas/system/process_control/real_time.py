"""Keeping this process out of the real-time scheduling class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def no_real_time() -> Iterator[None]:
    """After the block, put the process's real-time threads back into the usual class.

    This is for encoding with SVT-AV1: run by root, it makes the calling thread and its own threads real-time
    (SCHED_FIFO, priority 99). The calling thread stays so when the film is done, and so do processes it starts; on a
    machine without a spare core nothing else runs then, and processes that spin while waiting for each other hang.
    """
    try:
        yield
    finally:
        leave_real_time()


def leave_real_time() -> None:
    """Do so now, even while an encoder is open, if it has taken its first frame and thus started its threads."""
    if not hasattr(os, "sched_setscheduler"):
        return  # not Linux, where the encoder uses another call, for its own threads only
    for task in Path("/proc/self/task").iterdir():
        thread = int(task.name)
        with suppress(ProcessLookupError):  # a thread that has ended meanwhile
            if os.sched_getscheduler(thread) in (os.SCHED_FIFO, os.SCHED_RR):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
