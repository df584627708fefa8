"""A Python that has imported what takes seconds, and forks: each copy continues as a separate process.

Started by tests/warm.py, with one end of a socket and one that listens. A request names what a command line would:
arguments, environment, folder, and the standard streams. The copy becomes a real `python ARGUMENTS`: it ends as an
interpreter ends, with its threads joined and its exit functions called. Whoever has asked learns its process id and how
it ended.

A copy that will start Pythons itself, as a launcher starts ranks, gets spare copies: the first processes that it starts
as `sys.executable` are spares, which have run nothing before, and are its children.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 20  # of a request
# Neither wandb nor a simulator: they look at their environment when they are imported.
MODULES = """
    accelerate av h5py pyarrow.parquet tensorboard.backend.event_processing.event_file_loader transformers
    transformers.models.byt5.tokenization_byt5 torch._dynamo torch.distributed.fsdp torch.distributed.launcher.api
    torch.distributed.tensor torch.utils.tensorboard atlas.cli atlas.rollout.evaluation atlas.train atlas.training
    atlas.training.parallel.sharded atlas.viewer hypothesis pytest
""".split()
_spares: list[tuple[int, socket.socket]] = []  # of this process: their ids, and where they wait


def serve(channel: socket.socket, door: socket.socket) -> list[str]:
    """Fork for every request; returns in the copies, with what they are to become.

    Requests come through the channel, whose end is the end of this process, and from any client of the socket.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait
    while True:
        (asking, *_), _, _ = select.select([channel, door], [], [])
        with contextlib.nullcontext(channel) if asking is channel else door.accept()[0] as asker:
            message, files, _, _ = socket.recv_fds(asker, MOST_BYTES, 4)
        if not message:
            if asking is channel:  # nobody is left who could ask
                sys.exit()
            continue
        if os.fork() == 0:
            channel.close()
            door.close()
            return _live(json.loads(message), files)
        for file in files:
            os.close(file)


def _live(request: dict[str, Any], files: list[int]) -> list[str]:
    """Fork once more: the copy becomes what was asked for, and this process tells how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, told = files
    process = os.fork()
    if process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, which is for the other
        for stream in (0, 1, 2, *streams):
            os.close(stream)
        os.write(told, f"{process}\n".encode())
        _, status = os.waitpid(process, 0)
        os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.close(told)
    if request["session"]:
        os.setsid()
    for _ in range(request["children"]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spare = os.fork()
        if spare == 0:
            ours.close()
            for stream in streams:
                os.close(stream)
            return _wait_as_a_spare(theirs)
        theirs.close()
        _spares.append((spare, ours))
    return _take_on(request, streams)


def _wait_as_a_spare(channel: socket.socket) -> list[str]:
    for _, other in _spares:
        other.close()
    _spares.clear()
    interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(channel, MOST_BYTES, 3)
    if not message:  # whoever had it has ended
        os._exit(0)
    signal.signal(signal.SIGINT, interrupted)
    channel.close()
    request = json.loads(message)
    if request["session"]:
        os.setsid()
    return _take_on(request, files)


def _take_on(request: dict[str, Any], streams: list[int]) -> list[str]:
    """The streams, folder and environment that were asked for; returns the arguments."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    os.chdir(request["folder"])
    here = _search_path(os.environ)
    os.environ.clear()
    os.environ.update(request["environment"])
    _show_environment()
    sys.path[1:] = [*_search_path(os.environ), *(path for path in sys.path[1:] if path not in here)]
    arguments: list[str] = request["arguments"]
    return arguments


def _show_environment() -> None:
    """Write the environment to where the system looks when it is asked for that of a process: /proc/PID/environ."""
    numbers = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(numbers[47]), int(numbers[48])
    block = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in os.environ.items())
    assert len(block) <= end - start, "the environment is larger than the room that warm.py has made for it"
    ctypes.memmove(start, block.ljust(end - start, b"\0"), end - start)


def _search_path(environment: Any) -> list[str]:
    return [os.path.abspath(part) for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]


def become(arguments: list[str]) -> None:
    """What `python ARGUMENTS` does: `-m MODULE …`, `-c CODE …` or `SCRIPT …`."""
    if _spares:
        subprocess.Popen._execute_child = _take_a_spare  # type: ignore[attr-defined]
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        del arguments[0]
    first, *rest = arguments
    folder = "" if first == "-c" else os.getcwd() if first == "-m" else os.path.dirname(os.path.abspath(first))
    sys.path[:1] = [] if os.environ.get("PYTHONSAFEPATH") else [folder]
    if first == "-m":
        module, *rest = rest
        sys.argv = [first, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *rest = rest
        sys.argv = [first, *rest]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")


_execute_child = subprocess.Popen._execute_child  # type: ignore[attr-defined]


def _take_a_spare(started: Any, *given: Any) -> None:
    """Instead of a method of subprocess.Popen: a Python is not started, as long as there are spare copies of one."""
    asked = inspect.signature(_execute_child).bind(started, *given).arguments
    command = asked["args"]
    if not _spares or isinstance(command, str | bytes) or command[0] != sys.executable or asked["preexec_fn"]:
        _execute_child(started, *given)
        return
    request = {
        "arguments": [os.fspath(argument) for argument in command[1:]],
        "environment": dict(os.environ if asked["env"] is None else asked["env"]),
        "folder": os.fspath(asked["cwd"] or os.getcwd()),
        "session": asked["start_new_session"],
    }
    started.pid, channel = _spares.pop(0)
    started._child_created = True
    theirs = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
    streams = [number if file == -1 else file for number, file in enumerate(theirs)]
    with channel:
        socket.send_fds(channel, [json.dumps(request).encode()], streams)
    ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    started._close_pipe_fds(*(asked[name] for name in ends))


if __name__ == "__main__":
    for name in MODULES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.freeze()  # what is imported stays as it is, in memory that the copies share
    become(serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:])))
