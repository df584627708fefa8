"""The number of this machine among several, and the first one's address: from flags or config, otherwise SLURM's
variables."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas.errors import InputError

if TYPE_CHECKING:
    from atlas.config import DistributedConfig


LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Nodes:
    """The machines of one run, which meet at the first one's address and port."""

    number: int
    rank: int  # of this machine
    master_addr: str
    master_port: int
    wait_minutes: float = 30.0  # for each other, before the ranks start


ALONE = Nodes(1, 0, LOOPBACK, 0)  # port 0: any free port


def plan_nodes(distributed: DistributedConfig, environment: Mapping[str, str]) -> Nodes:
    """The machines that take part; `ALONE` if it is only this one.

    Flags and config take precedence over SLURM's variables. Raises InputError if they cannot work, or if the address
    cannot be found.
    """
    number = distributed.num_nodes or _slurm_number(environment, "SLURM_STEP_NUM_NODES", "SLURM_NNODES") or 1
    rank = distributed.node_rank
    if rank is None and number > 1:
        rank = _slurm_number(environment, "SLURM_NODEID")
    rank = rank or 0
    if rank >= number:
        right = "0, as there is one machine" if number == 1 else f"0 to {number - 1}, as there are {number} machines"
        raise InputError(f"--node-rank {rank} (distributed.node_rank) should be {right} (--num-nodes).")
    if number == 1:
        if distributed.master_addr is not None:
            raise InputError(
                f"--master-addr {distributed.master_addr} (distributed.master_addr) is for several machines, but there "
                f"is only one: add --num-nodes N, or leave it out."
            )
        return ALONE
    if distributed.num_nodes is None:
        _check_tasks(environment, number)
    address = distributed.master_addr or _slurm_first_host(environment)
    if address is None:
        raise InputError(
            f"--num-nodes {number} needs the first machine's address: add --master-addr HOST "
            f"(distributed.master_addr), the same on every machine."
        )
    _check_address(address, distributed.master_port)
    return Nodes(number, rank, address, distributed.master_port, distributed.timeout_minutes)


def _slurm_number(environment: Mapping[str, str], *names: str) -> int | None:
    """The first of the variables that is set. A step's own come first: it may have fewer machines than the job."""
    for name in (*names, *(["SLURM_JOB_NUM_NODES"] if "SLURM_NNODES" in names else [])):
        text = environment.get(name, "")
        if text.isdigit():
            return int(text)
    return None


def _slurm_first_host(environment: Mapping[str, str]) -> str | None:
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not hosts:
        return None
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(
            f"SLURM's scontrol does not say which hosts {hosts} are ({error}); add --master-addr HOST, the first one."
        ) from None
    return next(iter(done.stdout.split()), None)


def _check_tasks(environment: Mapping[str, str], number: int) -> None:
    tasks = _slurm_number(environment, "SLURM_STEP_NUM_TASKS")
    if tasks is not None and tasks > number:
        raise InputError(
            f"SLURM has started {tasks} tasks on {number} machines. One per machine is enough (srun "
            f"--ntasks-per-node=1): it starts a process for every GPU itself."
        )


def _check_address(host: str, port: int) -> None:
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:  # UnicodeError for what cannot be a host name, such as a..b
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--master-addr {host} (distributed.master_addr) cannot be resolved on this machine ({reason}); give the "
            f"first machine's name or address."
        ) from None
