"""Processes that learn as one: each plays its own worlds, all see all decisions, and gradients are summed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from atlas.config import DistributedConfig
from atlas.errors import InputError
from atlas.launch import Plan, count_gpus, plan_processes

Value = TypeVar("Value")


def asked_processes(distributed: DistributedConfig) -> Plan:
    """The number of processes that learn, and their devices: one on the CPU, unless the section says otherwise. Raises
    InputError."""
    if (distributed.num_nodes or 1) > 1:
        raise InputError(
            f"distributed.num_nodes is {distributed.num_nodes}: learning by reward happens on one machine; add "
            "distributed.num_nodes=1."
        )
    if distributed.strategy == "fsdp":
        raise InputError(
            "distributed.strategy is fsdp: in learning by reward each process has the whole policy; add "
            "distributed.strategy=ddp."
        )
    some = distributed.mode == "multi" or distributed.gpus is not None or distributed.gpu_ids is not None
    return plan_processes(distributed, count_gpus(distributed)) if some else Plan(1, cpu=True)


def one_device(distributed: DistributedConfig) -> torch.device:
    """The device of SAC, which learns in one process: the CPU, unless the section asks for a GPU. Raises InputError."""
    plan = asked_processes(distributed)
    if plan.processes > 1:
        raise InputError(
            f"distributed asks for {plan.processes} processes, and SAC learns in one: such as distributed.gpus=1. More "
            "processes can play (--actors)."
        )
    os.environ.update(plan.environment(os.environ))
    return torch.device("cpu") if plan.cpu else torch.device("cuda", 0)


class RankGroup:
    """The group, as one of its processes sees it; a process alone sends nothing."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = torch.device("cpu") if device is None else device

    @classmethod
    def join(cls, distributed: DistributedConfig, held: ExitStack) -> RankGroup:
        """Join the processes that were started together; the group is left with the stack."""
        size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
        cpu = asked_processes(distributed).cpu
        device = torch.device("cpu") if cpu else torch.device("cuda", local)
        if size == 1:
            return cls(device=device)
        backend = "gloo" if cpu else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=distributed.group_timeout)
        held.callback(dist.destroy_process_group)
        return cls(int(os.environ["RANK"]), size, device)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes, by rank; any object may be sent, because all run the same program."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Value) -> Value:
        """The first process's value."""
        return self.gathered(value)[0]

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace the tensors by their sums over all processes, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
