"""How many processor cores this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """The cores that are allowed to this process, where the system says so (Linux), else all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


RANKS_ON_CORES = "ATLAS_RANKS_ON_CORES"  # how many ranks share the cores that this one was bound to


def cores_of_rank() -> int:
    """The share of this rank in the cores that it and others of its machine may use; at least one."""
    sharing = os.environ.get(RANKS_ON_CORES) or os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, available_cores() // int(sharing))
