"""Real processes that train together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from atlas.config import Config
from atlas.training.strategy import ddp_settings

_DEVICE = "RANKS_DEVICE"


def run_ranks(world: int, folder: Path, function: Callable[..., Any], *args: Any, device: str = "cpu") -> list[Any]:
    """What `function(*args)` gives on each of `world` new processes that a launcher would have started.

    function: of a module, with arguments that can be pickled; gives what torch.save takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    names |= {"OMP_NUM_THREADS": 1, _DEVICE: device}
    torch.multiprocessing.spawn(_rank, (names, folder, function, args), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, names: dict[str, Any], folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {name: str(value) for name, value in (names | {"RANK": rank, "LOCAL_RANK": rank}).items()}
    torch.set_num_threads(1)
    torch.save(function(*args), folder / f"{rank}.pt")
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
