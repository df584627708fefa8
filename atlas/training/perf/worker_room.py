"""Whether this machine has room for the requested data workers, checked before they start.

A batch goes from a worker to its rank through shared memory (/dev/shm, of which Docker gives a container 64 MB), with
one open file per tensor. If either runs out later, a worker ends without explanation.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
from dataclasses import fields
from pathlib import Path

import torch

from atlas.config import Config
from atlas.data.sampling.loader import PREFETCHED, worker_count
from atlas.data.training_data import TrainingData
from atlas.errors import InputError
from atlas.types import Batch

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
_LOADERS = 2  # for training and validation
_OTHER_FILES = 64  # other open files: data, logs, checkpoints
_FILES_A_WORKER = 6  # pipes and locks
_MOST_SHARED = 0.9  # of the free shared memory
_ENOUGH = 1 << 16  # open files; a higher limit slows processes that close all they could have open


def settle_workers(config: Config, data: TrainingData, device: torch.device, ranks: int) -> Config:
    """The config with a number for `data.num_workers` if it was left open: as many as there is room for.

    ranks: on this machine, as far as they are known. Raises InputError if there is no room for the requested number.
    """
    wanted = worker_count(config.data.num_workers, device)
    if not wanted:
        return config
    room = _most_workers(data.train.__getitems__([(0, 0)]), config.data.batch_samples, ranks)
    fits = min(wanted, *(most for most, _ in room))
    if fits == wanted:
        return config
    why = " ".join(reason for most, reason in room if most < wanted)
    if config.data.num_workers is not None:
        raise InputError(f"data.num_workers is {wanted}, but there is room for {fits}. {why}")
    logger.warning("%d data workers instead of %d. %s", fits, wanted, why)
    return config.model_copy(update={"data": config.data.model_copy(update={"num_workers": fits})})


def _most_workers(sample: Batch, batch_samples: int, ranks: int) -> list[tuple[int, str]]:
    """The number of workers that a rank can have at most, for each resource they need, and what to do about it."""
    tensors = [t for f in fields(sample) if isinstance(t := getattr(sample, f.name), torch.Tensor)]
    in_flight = _LOADERS * (PREFETCHED + 1)  # batches per worker
    found = []
    if SHARED_MEMORY.is_dir():
        free, size = shutil.disk_usage(SHARED_MEMORY).free, sum(t.nbytes for t in tensors) * batch_samples
        needed = in_flight * size * ranks
        found.append(
            (
                int(_MOST_SHARED * free / needed),
                f"Each takes {_mib(needed)} of the shared memory {SHARED_MEMORY}, of which {_mib(free)} are free: "
                "start the container with more (docker run --shm-size=8g, or --ipc=host), make data.batch_size "
                "smaller, or set data.num_workers=0.",
            )
        )
    limit, files = _open_files_limit(), _LOADERS * _FILES_A_WORKER + in_flight * len(tensors)
    left = limit - _OTHER_FILES - _open_files()
    found.append(
        (
            max(0, left // files),
            f"Each takes {files} open files, of which {limit} are allowed (ulimit -n): allow more, such as ulimit -n "
            "4096, or set data.num_workers=0.",
        )
    )
    return found


def _open_files_limit() -> int:
    """The number of files that this process may have open, after raising the limit as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, most = (_ENOUGH if n == resource.RLIM_INFINITY else min(n, _ENOUGH) for n in (soft, hard))
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(soft, most)


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # not Linux
        return 0


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
