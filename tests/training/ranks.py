"""Real processes that train together."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from atlas.config import Config
from atlas.training.parallel.strategy import ddp_settings
from tests import warm

_DEVICE = "RANKS_DEVICE"


def run_ranks(world: int, folder: Path, function: Callable[..., Any], *args: Any, device: str = "cpu") -> list[Any]:
    """The result of `function(*args)` on each of `world` new processes, started as by a launcher.

    function: of a module, with picklable arguments; returns what torch.save accepts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    names |= {"OMP_NUM_THREADS": 1, _DEVICE: device}
    (folder / "asked").write_bytes(pickle.dumps((function, args)))
    ranks = [_start(rank, names, folder) for rank in range(world)]
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.returncode for rank in ranks):
            time.sleep(0.02)
    finally:  # where one has failed, the others wait for it
        for rank in ranks:
            rank.kill()
            rank.wait()
    failed = [number for number, rank in enumerate(ranks) if rank.returncode not in (0, -signal.SIGKILL)]
    said = "\n".join((folder / f"{number}.txt").read_text() for number in failed)
    assert not any(rank.returncode for rank in ranks), f"rank {failed} failed:\n{said}"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _start(rank: int, names: dict[str, Any], folder: Path) -> warm.Started:
    variables = {name: str(value) for name, value in (names | {"RANK": rank, "LOCAL_RANK": rank}).items()}
    with (folder / f"{rank}.txt").open("w") as said:
        command = ["-m", "tests.training.ranks", str(folder)]
        return warm.start(*command, stderr=said, env=os.environ | variables, cwd=warm.ROOT)


def _run_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    function, args = pickle.loads((folder / "asked").read_bytes())
    torch.save(function(*args), folder / f"{os.environ['RANK']}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make_accelerator(config: Config) -> Accelerator:
    """On the processes that there are, and on CPUs where nothing else was asked for."""
    bf16 = config.training.precision == "bf16"
    return Accelerator(
        cpu=os.environ.get(_DEVICE, "cpu") == "cpu",
        mixed_precision="bf16" if bf16 else "no",
        kwargs_handlers=[ddp_settings(config.training)],
    )


if __name__ == "__main__":
    _run_rank(Path(sys.argv[1]))
