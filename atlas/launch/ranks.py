"""Starting the ranks of this machine with `torch.distributed.run`, one process per rank, and ending with them.

The launcher passes on SIGINT, SIGTERM, SIGUSR1 and SIGHUP, reports once what went wrong, ends with the exit code of its
ranks, and takes them with it when it is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from atlas.errors import first_line
from atlas.launch.device import DEVICE
from atlas.launch.failure_report import exit_code, failure_lines, summary
from atlas.launch.meeting import Meeting, NodeLost
from atlas.launch.nodes import ALONE, Nodes
from atlas.launch.overseer import Overseer
from atlas.launch.plan import Plan
from atlas.launch.rank import FOLDER, LAUNCHER_PID
from atlas.system.process_control.cores import available_cores
from atlas.system.process_control.interpreter import module_command, safe_environment
from atlas.system.process_control.terminal import leave_lost_terminal
from atlas.system.safe_text import printable

# How long ranks that a user told to stop may take to write a checkpoint and to finish their trackers.
_STOP_SECONDS = 300
_LOOPBACK = ("lo", "lo0")  # the interface's names on Linux and elsewhere
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)


def launch_ranks(arguments: Sequence[str], plan: Plan, module: str = "atlas.cli", nodes: Nodes = ALONE) -> int:
    """Run `python -m module arguments…` in every rank, wait for all of them and return their common exit code.

    nodes: the machines that take part; `plan` is this one's share. Failures are reported on stderr. Raises InputError
    and NodeLost if the machines do not meet. Call it in the main thread: it handles signals while the ranks run.
    """
    with tempfile.TemporaryDirectory(prefix="atlas-ranks-") as name, Meeting(nodes) as meeting:
        folder = Path(name)
        variables = {
            **plan.environment(os.environ),
            **safe_environment(os.environ),
            **(_own_interface() if nodes.number == 1 else {}),
            DEVICE: "cpu" if plan.cpu else "cuda",
            LAUNCHER_PID: str(os.getpid()),
            FOLDER: name,
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_STOP_SECONDS)),
        }
        # A single process has its machine to itself, yet may be one of several: accelerate would say so.
        variables.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(available_cores())))
        options = [*meeting.torchrun_options(), "--nproc-per-node", str(plan.processes)]
        options += ["--log-dir", str(folder / "torchrun"), "--no-python", *module_command(module), *arguments]
        with _variables(variables), _signals(), Overseer(folder, plan.processes, meeting) as overseer:
            codes, stopped_by = _run(options)
        ending = overseer.ending(codes, stopped_by)
        said = summary(ending)
        if said is not None and said[1]:
            meeting.wait_for_cause()  # the cause of failures here may be on another machine
            ending.elsewhere = meeting.first_failure
        meeting.code = exit_code(ending, plan.processes)
    for line in failure_lines(ending):
        print(printable(line), file=sys.stderr)
    return meeting.code


def _run(options: Sequence[str]) -> tuple[dict[int, int], int | None]:
    """Run torchrun: returns the exit codes of the ranks that failed, and the signal that stopped it."""
    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parsed = torchrun.parse_args(options)
    if hasattr(parsed, "signals_to_handle"):
        parsed.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"  # SIGHUP is handled here, or ignored: see `_signals`
    # torchrun reports each failure at length; the rank's own report is clearer.
    logging.disable(logging.ERROR)
    try:
        torchrun.run(parsed)
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}, None
    except SignalException as error:
        return {}, int(error.sigval)
    except DistError as error:
        raise NodeLost(f"The store at which the ranks meet does not answer: {first_line(error)}.") from None
    finally:
        logging.disable(logging.NOTSET)
    return {}, None


def _own_interface() -> dict[str, str]:
    """Variables that keep connections between a machine's ranks on its loopback interface, unless a user has chosen."""
    there = {name for _, name in socket.if_nameindex()}
    name = next((name for name in _LOOPBACK if name in there), None)
    return {} if name is None else {v: os.environ.get(v, name) for v in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _signals() -> Iterator[None]:
    """Turn SLURM's warning and the end of the terminal into the SIGTERM that torchrun passes on; under nohup, the
    latter changes nothing. Afterwards the handlers are restored.
    """
    before = {number: signal.getsignal(number) for number in _HANDLED}

    def pass_on(number: int, _: FrameType | None) -> None:
        leave_lost_terminal()
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR1, pass_on)
    if before[signal.SIGHUP] is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
