"""Processes that start at once: copies of a Python that has already imported torch and Atlas.

`warm.run` and `warm.start` take what `subprocess.run` and `subprocess.Popen` take, without the interpreter in front:

    warm.run("-c", code)        warm.start("-m", "torch.distributed.run", …, stderr=PIPE)
    warm.atlas("train", …)      warm.start_atlas("train", …, stderr=PIPE)

They are processes like any other, with their own streams, signals and exit code. `children=2` lets two of the Pythons
that a process starts itself, such as the ranks of a training, start at once as well. If it matters how a process is
started, or what is imported in it, start a new interpreter: `subprocess.run([sys.executable, …])`.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import IO, Any

from tests import warm_server

ROOT = Path(__file__).parents[1]
_server: _Server | None = None
_making = threading.Lock()


class Process:
    """A started process; it can do what a subprocess.Popen of text can."""

    def __init__(self, pid: int, told: int, stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None
        self._told = told  # a pipe with its exit code, once there is one

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = _read_number(self._told)
            os.close(self._told)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that is still to come from its pipes, and wait for its end."""
        end = None if timeout is None else time.monotonic() + timeout
        streams, texts = [self.stdout, self.stderr], ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            if not stream.closed:  # as it is after an earlier call
                with stream:
                    texts[number] = stream.read()

        readers = [threading.Thread(target=read, args=(i, s), daemon=True) for i, s in enumerate(streams) if s]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if end is None else max(0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0, output=texts[0], stderr=texts[1])
        self.wait(None if end is None else max(0, end - time.monotonic()))
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Started = Process | subprocess.Popen[str]


def start(
    *arguments: str,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    start_new_session: bool = False,
    children: int = 0,
) -> Started:
    """The equivalent of `subprocess.Popen([sys.executable, *arguments], text=True, …)`."""
    if sys.platform != "linux":  # where a process with torch can be copied
        command, streams = [sys.executable, *arguments], {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        return subprocess.Popen(command, text=True, env=env, cwd=cwd, start_new_session=start_new_session, **streams)  # type: ignore
    request = {
        "arguments": list(arguments),
        "environment": dict(os.environ if env is None else env),
        "folder": str(cwd or os.getcwd()),
        "session": start_new_session,
        "children": children,
    }
    return _the_server().start(request, stdin, stdout, stderr)


def run(
    *arguments: str, check: bool = False, timeout: float | None = 280, **options: Any
) -> subprocess.CompletedProcess[str]:
    """The equivalent of `subprocess.run([sys.executable, *arguments], capture_output=True, text=True, …)`."""
    process = start(*arguments, **{"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE} | options)
    try:
        stdout, stderr = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    done = subprocess.CompletedProcess(arguments, process.wait(), stdout, stderr)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done


def atlas(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `atlas ARGUMENTS`, which has to end well unless `check=False`; see `run`."""
    return run("-m", "atlas.cli", *arguments, **{"check": True, "children": processes_of(arguments)} | options)


def start_atlas(*arguments: str, **options: Any) -> Started:
    """Start `atlas ARGUMENTS`; see `start`."""
    return start("-m", "atlas.cli", *arguments, **{"children": processes_of(arguments)} | options)


def processes_of(arguments: Sequence[str]) -> int:
    """How many ranks `atlas train ARGUMENTS` starts on this machine; none where it trains itself."""
    asked = list(arguments)
    number = int(asked[asked.index("--gpus") + 1]) if "--gpus" in asked else 0
    return number if number > 1 or "--num-nodes" in asked else 0


def write_python(folder: Path) -> None:
    """A `python` in this folder that starts at once, for the PATH of shell scripts."""
    for name in ("python", "python3"):
        client = f'-SE "{Path(__file__).with_name("warm_client.py")}" "{_the_server().place}"'
        text = f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\nexec "{sys.executable}" {client} "$@"\n'
        (folder / name).write_text(text if sys.platform == "linux" else f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (folder / name).chmod(0o755)


class _Server:
    """The Python that is copied, of this process."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, warm_server.MOST_BYTES)
        folder = Path(tempfile.mkdtemp(prefix="warm-"))
        self.place = folder / "door"
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(str(self.place))
            door.listen(100)
            numbers = [theirs.fileno(), door.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_server", *map(str, numbers)],
                pass_fds=numbers,
                stdin=DEVNULL,
                cwd=ROOT,
                # The first as `atlas train` sets it before it imports torch; the second is where copies write theirs.
                env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR", "ROOM": "x" * 100_000},
            )
        self._owner = os.getpid()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        atexit.register(self._channel.close)  # and so it ends

    def start(self, request: dict[str, Any], *streams: int | IO[Any] | None) -> Process:
        theirs: list[int] = []
        ours: list[IO[str] | None] = []
        opened: list[int] = []
        for number, asked in enumerate(streams):
            mine = None
            if asked is None:
                file = number
            elif asked == DEVNULL:
                opened.append(file := os.open(os.devnull, os.O_RDWR))
            elif asked == STDOUT:
                file = theirs[1]
            elif asked == PIPE:
                reading, file = os.pipe()
                opened.append(file)
                mine = os.fdopen(reading, encoding="utf-8", errors="replace")
            else:
                file = asked if isinstance(asked, int) else asked.fileno()
            theirs.append(file)
            ours.append(mine)
        told, telling = os.pipe()
        opened.append(telling)
        socket.send_fds(self._channel, [json.dumps(request).encode()], [*theirs, telling])
        for file in opened:
            os.close(file)
        return Process(_read_number(told), told, ours[1], ours[2])


def _the_server() -> _Server:
    global _server
    with _making:
        if _server is None or _server._owner != os.getpid():
            _server = _Server()
        return _server


def _read_number(pipe: int) -> int:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(pipe, 1)
        assert byte, "the process that others are copied from has ended"
        line += byte
    return int(line)
