"""The threads of this process: how long they wait for each other, how many torch uses, and that none is real-time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Turns of a waiting loop, about ten microseconds. libgomp's own default is milliseconds: beside another busy process,
# the threads that run then burn a core waiting for one that does not, and training is several times slower. With no
# turns at all, a thread sleeps between any two operations, and training alone is slower. Measured by
# benchmarks/shared_machine.py.
_SPIN = "5000"


def yield_cores() -> None:
    """Let this process's and its children's OpenMP threads share cores with other work, unless the user has chosen.

    Call it before torch is imported: libgomp reads the environment once, when it is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: a policy that waits for its simulators must not spin on the cores they need."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
