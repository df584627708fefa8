"""A rank without a trainer, under the real launcher and the real `main`: each does what its argument says.

Run as a script it is the launcher: `rank_probe.py FOLDER ROLE,ROLE [ROLE,ROLE,ROLE …]` starts one rank per role, for
each list in a separate folder, and prints the results.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import sys
import time
import types
from pathlib import Path

import atlas
from atlas import cli
from atlas.errors import InputError
from atlas.launch import Nodes, Plan, die_with_launcher, launch_ranks, leave_error, meeting, overseer

# The package's own __init__ imports the trainer, which takes a rank seconds and is not needed here.
sys.modules["atlas.training"] = types.ModuleType("atlas.training")
sys.modules["atlas.training"].__path__ = [str(Path(atlas.__file__).parent / "training")]

from atlas.training.guards.signals import Interrupted, listening  # noqa: E402
from atlas.training.guards.watchdog import Heartbeat, Watchdog  # noqa: E402

HANG_SECONDS = 2.0
END_OF_CASE = "-- end of case --"


@cli.app.command()
def probe(folder: Path, roles: list[str]) -> None:
    die_with_launcher()
    rank = int(os.environ["RANK"])
    role = roles[rank]
    meets = any(each in ("reduce", "meet") for each in roles)
    if meets:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        dist.barrier()
    heartbeat = Heartbeat()
    with listening() as stop, Watchdog(heartbeat, HANG_SECONDS if "hang" in roles else 3600, rank, folder):
        heartbeat.beat("step 3")
        say_ready(folder, rank)
        while not all((folder / f"ready_{each}").exists() for each in range(len(roles))):
            time.sleep(0.02)
        if role == "raise":
            if "PROBE_ENDLESS_END" in os.environ:
                atexit.register(time.sleep, 1000)  # as the end of a process group of GPUs would
            raise ValueError("a defect")
        if role == "input":
            raise InputError("data.path is on another machine.")
        if role == "linger":
            try:
                raise ValueError("a defect")
            except ValueError as error:
                leave_error(error)
                time.sleep(1000)  # as a tracker that cannot be closed
        if role == "exit":
            os._exit(7)
        if role == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if role == "crash":
            ctypes.string_at(0)
        if role == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if role == "hold":
            hold_forever()
        while True:
            if role == "reduce":
                dist.all_reduce(torch.ones(1))
            if role in ("save", "meet") and stop.signal is not None:
                time.sleep(1.5)
                (folder / f"saved_{rank}").write_text(signal.Signals(stop.signal).name)
                raise Interrupted(stop.signal)
            time.sleep(0.02)


def hold_forever() -> None:
    """A call into C that keeps Python's lock: a mutex is locked twice."""
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def say_ready(folder: Path, rank: int) -> None:
    partial = folder / f"partial_{rank}"
    partial.write_text(str(os.getpid()))
    partial.rename(folder / f"ready_{rank}")


def launch(folder: Path, cases: list[str]) -> int:
    """One set of ranks after the other, all on this machine."""
    for number, roles in enumerate(cases):
        case = folder / str(number)
        case.mkdir()
        start = time.time()
        plan = Plan(len(roles.split(",")), cpu=True)
        code = launch_ranks(["probe", str(case), *roles.split(",")], plan, "tests.launch.rank_probe")
        ready = max((file.stat().st_mtime for file in case.glob("ready_*")), default=start)
        print(json.dumps({"code": code, "seconds": time.time() - ready}), flush=True)
        print(END_OF_CASE, file=sys.stderr, flush=True)
    return code


def launch_on_node(folder: Path, roles: str, number: int, port: int) -> int:
    """One rank on each of as many nodes as there are roles, which are launchers on this machine."""
    nodes = Nodes(len(roles.split(",")), number, "127.0.0.1", port, wait_minutes=1)
    (folder / "0").mkdir(exist_ok=True)
    arguments = ["probe", str(folder / "0"), *roles.split(",")]
    return launch_ranks(arguments, Plan(1, cpu=True), "tests.launch.rank_probe", nodes)


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        cli.main()
    if os.environ.get("PROBE_SHORT"):  # what is tested is what is said, and not the times
        overseer._STUCK_SECONDS, overseer._ENDING_SECONDS, meeting._SILENCE_SECONDS = 2, 4, 5
    if "PROBE_NODE" in os.environ:
        number, port = map(int, os.environ["PROBE_NODE"].split(":"))
        sys.exit(launch_on_node(Path(sys.argv[1]), sys.argv[2], number, port))
    sys.exit(launch(Path(sys.argv[1]), sys.argv[2:]))
