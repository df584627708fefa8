"""The device that this process trains or acts on: a GPU, or the CPU if asked for; never one for the other."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Literal

from atlas.errors import InputError, first_line
from atlas.launch.plan import VISIBLE, Plan, count_gpus

if TYPE_CHECKING:
    import torch

    from atlas.config import DistributedConfig

DEVICE = "ATLAS_DEVICE"  # what the launcher has planned for its ranks: cpu or cuda


def settle_device(distributed: DistributedConfig) -> Literal["cpu", "cuda"]:
    """Make this process see only the GPUs that `gpu_ids` names, and return what it trains on.

    Call it before anything else uses CUDA, which reads the variable only once; calling it again changes nothing. Raises
    InputError, with torch's reason, if there are GPUs or some are asked for, but CUDA does not work.
    """
    if distributed.cpu:
        return "cpu"
    if distributed.gpu_ids:
        _show_only(distributed.gpu_ids)
    found = count_gpus(distributed)
    if _works():
        return "cuda"
    if found or distributed.gpus or distributed.gpu_ids or os.environ.get(DEVICE) == "cuda":
        raise InputError(f"{_unusable(found)}; with --cpu (distributed.cpu=true) it trains on the CPU.")
    return "cpu"


def acting_device(cpu: bool = False) -> torch.device:
    """The device that a policy runs on outside of training: the first visible GPU; the CPU if it is asked for or there
    is no GPU.

    Raises InputError, with torch's reason, if there are GPUs that CUDA cannot use.
    """
    import torch

    if cpu:
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if _works():
        return torch.device("cuda")
    if found:
        raise InputError(f"{_unusable(found)}; with {VISIBLE}= (empty) the CPU is used.")
    return torch.device("cpu")


def check_gpu_of_rank(distributed: DistributedConfig) -> None:
    """Raise InputError if the number of processes and the GPUs they see do not match: two processes would share a
    GPU, or one would be left out.
    """
    import torch

    rank, processes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    seen = torch.cuda.device_count()
    if rank >= seen > 1:  # if only one is seen, a cluster may show each process a different one
        raise InputError(
            f"Process {rank} of this machine has no GPU: {seen} are visible ({VISIBLE}={os.environ.get(VISIBLE)}). "
            "Start as many processes as there are GPUs."
        )
    ids = distributed.gpu_ids
    if ids and len(ids) != processes:
        shown = ",".join(map(str, ids))
        raise InputError(
            f"distributed.gpu_ids names {shown}, but there {'is 1 process' if processes == 1 else f'are {processes}'} "
            "to use them: name one GPU per process, or start with `atlas train`."
        )


def _show_only(ids: list[int]) -> None:
    import torch

    chosen = Plan(len(ids), cpu=False, gpu_ids=tuple(ids)).visible(os.environ)
    if os.environ.get(VISIBLE) == chosen[VISIBLE]:
        return
    if torch.cuda.is_initialized():
        raise InputError(
            f"distributed.gpu_ids names {','.join(map(str, ids))}, but this process already uses CUDA, which cannot "
            f"choose again: set {VISIBLE} before it starts."
        )
    os.environ.update(chosen)


def _works() -> bool:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warning is the reason, which `_unusable` says
        return torch.cuda.is_available()


def _unusable(found: int) -> str:
    there = "GPUs are asked for" if not found else f"{found} GPU{' is' if found == 1 else 's are'} there"
    return f"{there}, but torch cannot use CUDA: {_reason()}. `atlas doctor` says more"


def _reason() -> str:
    """Why torch cannot use CUDA, in its own words."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "torch.cuda.is_available() is false"
