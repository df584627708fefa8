"""The number of processes that train on this machine, and their GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas.errors import InputError
from atlas.system.process_control.cores import available_cores

if TYPE_CHECKING:
    from atlas.config import DistributedConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
# The variable's value before GPUs were chosen ("all": not set), so that choosing again, say in a rank, changes nothing.
_BEFORE = "ATLAS_VISIBLE_DEVICES"
_ALL = "all"


@dataclass(frozen=True)
class Plan:
    """The processes of one run on this machine."""

    processes: int
    cpu: bool
    gpu_ids: tuple[int, ...] = ()  # among the visible GPUs; empty: the first ones, one per process

    def environment(self, current: Mapping[str, str]) -> dict[str, str]:
        """The variables that the processes need, given the current ones."""
        changes = self.visible(current)
        if self.processes > 1 and "OMP_NUM_THREADS" not in current:
            changes["OMP_NUM_THREADS"] = str(max(1, available_cores() // self.processes))
        return changes

    def visible(self, current: Mapping[str, str]) -> dict[str, str]:
        """The variables that show CUDA the plan's GPUs; none if it uses all of them. Raises InputError."""
        if self.cpu:
            return {VISIBLE: ""}
        if not self.gpu_ids:
            return {}
        before = current.get(_BEFORE, current.get(VISIBLE, _ALL))
        names = (
            [str(i) for i in range(max(self.gpu_ids) + 1)] if before == _ALL else list(filter(None, before.split(",")))
        )
        if max(self.gpu_ids) >= len(names):
            raise InputError(
                f"--gpu-ids (distributed.gpu_ids): GPU {max(self.gpu_ids)} is asked for, but {VISIBLE}={before} shows "
                f"{len(names)}."
            )
        return {VISIBLE: ",".join(names[i].strip() for i in self.gpu_ids), _BEFORE: before}


def without_choice(current: Mapping[str, str]) -> dict[str, str]:
    """An environment in which GPUs are counted among those it showed originally, whatever was chosen since."""
    return {name: value for name, value in current.items() if name != _BEFORE}


def plan_processes(distributed: DistributedConfig, gpus_found: int) -> Plan:
    """Decide how many processes to start, and on what. Raises InputError if there are fewer GPUs than asked for."""
    if distributed.cpu:
        if distributed.mode == "multi" and distributed.gpus is None:
            raise InputError("--mode multi with --cpu needs the number of CPU processes: add --gpus N.")
        return Plan(distributed.gpus or 1, cpu=True)
    if distributed.gpu_ids is not None:
        return _chosen_gpus(distributed, gpus_found)
    if distributed.gpus is not None:
        if distributed.gpus > gpus_found:
            raise InputError(f"{distributed.gpus} GPUs are asked for, but {_found(gpus_found)}. {_instead(gpus_found)}")
        return Plan(distributed.gpus, cpu=False)
    if distributed.mode == "multi":
        if gpus_found == 0:
            raise InputError(f"--mode multi asks for all GPUs, but {_found(0)}. {_instead(0)}")
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
        raise InputError(f"--gpu-ids {shown}: GPU {max(ids)} is asked for, but {_found(gpus_found)}{have}.")
    if distributed.mode == "single" and len(ids) > 1:
        raise InputError(f"--mode single uses one GPU, but --gpu-ids names {len(ids)}; use --mode multi, or one id.")
    return Plan(len(ids), cpu=False, gpu_ids=ids)


def _found(gpus: int) -> str:
    return "no GPU was found" if gpus == 0 else f"{gpus} GPU{' was' if gpus == 1 else 's were'} found"


def _instead(gpus: int) -> str:
    return "Add --cpu to train on CPU processes." if gpus == 0 else f"Use --gpus {gpus}, or leave it out for all."


def count_gpus(distributed: DistributedConfig) -> int:
    """The number of visible GPUs; not looked for if only CPUs are wanted. Does not initialise CUDA."""
    if distributed.cpu:
        return 0
    import torch

    return torch.cuda.device_count()
