"""How many processes train, and starting them: one rank a process, with `torch.distributed.run`.

The launcher passes SIGINT and SIGTERM on, ends with the exit code of its ranks, and takes them with it when it is
killed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atlas.cores import available_cores
from atlas.errors import InputError

if TYPE_CHECKING:
    from atlas.config import DistributedConfig

_LAUNCHER_PID = "ATLAS_LAUNCHER_PID"
_EXIT_CODES = "ATLAS_EXIT_CODES"  # the folder in which ranks leave theirs
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
# How long ranks that were told to stop may take to write a checkpoint and to finish their trackers.
_STOP_SECONDS = 300


@dataclass(frozen=True)
class Plan:
    """The processes of one run on this machine."""

    processes: int
    cpu: bool
    gpu_ids: tuple[int, ...] = ()  # among the visible GPUs; empty: the first ones, one a process

    def environment(self, current: Mapping[str, str]) -> dict[str, str]:
        """The variables that the processes need, given those there are."""
        changes = {}
        if self.cpu:
            changes["CUDA_VISIBLE_DEVICES"] = ""
        elif self.gpu_ids:
            visible = current.get("CUDA_VISIBLE_DEVICES")
            names = visible.split(",") if visible else [str(i) for i in range(max(self.gpu_ids) + 1)]
            changes["CUDA_VISIBLE_DEVICES"] = ",".join(names[i].strip() for i in self.gpu_ids)
        if self.processes > 1 and "OMP_NUM_THREADS" not in current:
            changes["OMP_NUM_THREADS"] = str(max(1, available_cores() // self.processes))
        return changes


def plan_processes(distributed: DistributedConfig, gpus_found: int) -> Plan:
    """How many processes to start, and on what. Raises InputError when there are fewer GPUs than are asked for."""
    if distributed.cpu:
        if distributed.mode == "multi" and distributed.gpus is None:
            raise InputError("--mode multi with --cpu needs the number of CPU processes: add --gpus N.")
        return Plan(distributed.gpus or 1, cpu=True)
    if distributed.gpu_ids is not None:
        return _chosen_gpus(distributed, gpus_found)
    if distributed.gpus is not None:
        if distributed.gpus > gpus_found:
            raise InputError(f"{distributed.gpus} GPUs are asked for and {_found(gpus_found)}. {_instead(gpus_found)}")
        return Plan(distributed.gpus, cpu=False)
    if distributed.mode == "multi":
        if gpus_found == 0:
            raise InputError(f"--mode multi asks for all GPUs and {_found(0)}. {_instead(0)}")
        return Plan(gpus_found, cpu=False)
    if distributed.mode == "single" or gpus_found == 0:
        return Plan(1, cpu=gpus_found == 0)
    return Plan(gpus_found, cpu=False)


def _chosen_gpus(distributed: DistributedConfig, gpus_found: int) -> Plan:
    ids = tuple(distributed.gpu_ids or ())
    shown = ",".join(map(str, ids))
    if not ids:
        raise InputError("--gpu-ids (distributed.gpu_ids) is empty; name GPUs, such as 0,2, or leave it out.")
    if len(set(ids)) < len(ids):
        raise InputError(f"--gpu-ids {shown} names a GPU twice.")
    if max(ids) >= gpus_found:
        have = f" (ids 0 to {gpus_found - 1})" if gpus_found > 1 else " (id 0)" if gpus_found else ""
        raise InputError(f"--gpu-ids {shown}: GPU {max(ids)} is asked for and {_found(gpus_found)}{have}.")
    if distributed.mode == "single" and len(ids) > 1:
        raise InputError(f"--mode single uses one GPU and --gpu-ids names {len(ids)}; use --mode multi, or one id.")
    return Plan(len(ids), cpu=False, gpu_ids=ids)


def _found(gpus: int) -> str:
    return "no GPU was found" if gpus == 0 else f"{gpus} GPU{' was' if gpus == 1 else 's were'} found"


def _instead(gpus: int) -> str:
    return "Add --cpu to train on CPU processes." if gpus == 0 else f"Use --gpus {gpus}, or leave it out for all."


def count_gpus(distributed: DistributedConfig) -> int:
    """The GPUs that are visible; not looked for where only CPUs are wanted. Does not initialise CUDA."""
    if distributed.cpu:
        return 0
    import torch

    return torch.cuda.device_count()


# ---- the launcher ----------------------------------------------------------------------------------------


def launch_ranks(arguments: Sequence[str], plan: Plan, module: str = "atlas.cli") -> int:
    """Run `python -m module arguments…` in every rank, wait for all of them and return their common exit code.

    Must be called in the main thread: it handles signals while the ranks run.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.update(plan.environment(os.environ))
    os.environ[_LAUNCHER_PID] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_STOP_SECONDS))
    # The launcher and its ranks are on one machine; its own name may not resolve.
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(plan.processes)]
    # torchrun reports each failure at length; what the rank itself has printed says it better.
    logging.disable(logging.ERROR)
    stopped_by = None
    codes: dict[int, int] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="atlas-ranks-") as folder:
            os.environ[_EXIT_CODES] = folder
            try:
                torchrun.run(torchrun.parse_args([*options, "-m", module, *arguments]))
            except ChildFailedError as error:
                codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
                _report_killed(codes)
            except SignalException as error:
                stopped_by = int(error.sigval)
            codes = {int(file.name): int(file.read_text()) for file in Path(folder).iterdir()} | codes
    finally:
        logging.disable(logging.NOTSET)
    if stopped_by is not None and len(codes) < plan.processes:
        codes[-1] = -stopped_by  # some ranks were stopped before they could say how they ended
    return common_exit_code(codes.values())


def _report_killed(codes: Mapping[int, int]) -> None:
    for rank, code in sorted(codes.items()):
        # It could not say anything itself. SIGTERM is torchrun's, when another rank has failed.
        if code < 0 and -code != signal.SIGTERM:
            hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
            print(f"Rank {rank} was killed by {signal.Signals(-code).name}{hint}.", file=sys.stderr)


def common_exit_code(codes: Iterable[int]) -> int:
    """One exit code for the codes of several ranks, negative where a signal killed one.

    Wrong input is first, because the other ranks then fail as a consequence; then any failure; then having been
    stopped (130, 143), because the launcher stops the others when one rank fails; 0 when all ended well.
    """
    shell = [128 - code if code < 0 else code for code in codes]
    stopped = (128 + signal.SIGINT, 128 + signal.SIGTERM)
    failed = [code for code in shell if code and code not in stopped]
    if 2 in failed:
        return 2
    return next(iter([*failed, *(code for code in shell if code)]), 0)


# ---- in a rank -------------------------------------------------------------------------------------------


def die_with_launcher() -> None:
    """Have the kernel kill this rank when its launcher ends, however it ends (Linux only)."""
    launcher = os.environ.get(_LAUNCHER_PID)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError:  # it was gone before the kernel was told
        os._exit(128 + signal.SIGKILL)


def leave_exit_code(code: int) -> None:
    """Tell the launcher how this rank ended: torchrun keeps only that it failed. Does nothing elsewhere."""
    folder, rank = os.environ.get(_EXIT_CODES), os.environ.get("RANK")
    if folder and rank and Path(folder).is_dir():
        (Path(folder) / rank).write_text(str(code))
