"""The number of processor cores that this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """The cores this process is allowed to use, where the system tells (Linux); otherwise all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


RANKS_ON_CORES = "ATLAS_RANKS_ON_CORES"  # how many ranks share the cores that this one was bound to


def cores_of_rank() -> int:
    """This rank's share of the cores that it and the other ranks of its machine may use; at least one."""
    sharing = os.environ.get(RANKS_ON_CORES) or os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, available_cores() // int(sharing))
