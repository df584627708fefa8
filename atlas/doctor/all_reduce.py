"""Several processes sum their numbers: `python -m atlas.doctor.all_reduce FILE BACKEND PROCESSES`.

They are started like those of a training, and write the result to the file.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from atlas.doctor.child import answer
from atlas.launch import Plan, is_rank, launch_ranks

_BYTES = {"gloo": 4 * 2**20, "nccl": 256 * 2**20}
_REPETITIONS = 5
_TIMEOUT = timedelta(seconds=60)


def measure(backend: str) -> dict[str, float]:
    """Sum numbers over the processes, check the sum, and time it.

    bus_bandwidth: bytes per second over each link, size / time * 2 (n - 1) / n, which does not depend on the number n
    of processes (as in NCCL's own tests: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
    """
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=_TIMEOUT)
    world = dist.get_world_size()
    own = torch.full((_BYTES[backend] // 4,), float(dist.get_rank() + 1), device=device)
    total = own.clone()
    dist.all_reduce(total)
    expected = world * (world + 1) / 2
    if not bool((total == expected).all()):
        raise RuntimeError(f"the sum is wrong: {total.min().item()} to {total.max().item()} instead of {expected}")
    times = [_time(own, device) for _ in range(_REPETITIONS)]
    dist.destroy_process_group()
    seconds = min(times)
    size = own.numel() * own.element_size()
    return {"bytes": size, "seconds": seconds, "bus_bandwidth": size / seconds * 2 * (world - 1) / world}


def _time(values: torch.Tensor, device: torch.device) -> float:
    summed = values.clone()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    dist.all_reduce(summed)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    file, backend, processes = sys.argv[1:]
    if is_rank():
        answer(file, lambda: measure(backend))
    else:
        plan = Plan(int(processes), cpu=backend == "gloo")
        sys.exit(launch_ranks(sys.argv[1:], plan, "atlas.doctor.all_reduce"))
