"""How long the threads of a computation wait for each other before they give up their core."""

from __future__ import annotations

import os

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
