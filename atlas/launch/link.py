"""What the launchers of several machines tell each other: the run before it starts, and who has failed while it runs.

Node 0 holds a small store (torch's TCPStore) at the port after the master port, from before it prepares the run until
the others have ended. Every launcher writes a number there each second, so that a machine that is gone is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from atlas.errors import InputError, first_line
from atlas.launch.nodes import Nodes

if TYPE_CHECKING:
    from torch.distributed import TCPStore

CONFIG = "config.yaml"  # of the run's folder
_BEAT_SECONDS = 1.0
_SILENCE_SECONDS = 15.0  # without a beat a machine counts as gone
_LOOK_SECONDS = 0.2
_ANSWER_SECONDS = 10.0  # for the store to answer
_SAY_SECONDS = 10.0  # of waiting, after which it says for what
_SHARED_SECONDS = 30.0  # for a shared file system to show what another machine has written
_LINGER_SECONDS = 10.0  # of node 0, for the others to read what it has left
IN_GOOD_ORDER = (0, 130, 143)  # the exit codes of ranks that are done, or were told to stop


class NodeLost(Exception):
    """Another machine is gone, or never came. Not the user's input, as a rule, and no defect either."""

    exit_code = 1


@dataclass(frozen=True)
class Failure:
    """What a node tells of the failure of its ranks."""

    node: int
    text: str  # the first cause, in one line
    consequence: bool  # whether it says no more than that another rank is gone
    hang: bool = False  # whether nothing moved for too long
    at_once: bool = False  # whether the user wants all to end at once
    code: int = 1  # the exit code that goes with it


class NodeLink:
    """This machine's part in the exchange. From `with` on it is connected, or there is an error.

    Before the ranks: node 0 prepares the run inside `refusing` and calls `publish`, the others `receive`. Then all call
    `watch`.
    """

    def __init__(self, nodes: Nodes, timeout_seconds: float) -> None:
        """timeout_seconds: how long the machines wait for each other before the ranks start."""
        self.nodes = nodes
        self.told = False  # whether this node has told a failure
        self.code = 0  # the exit code of this node's ranks, once they have ended
        self._others = [node for node in range(nodes.number) if node != nodes.rank]
        self._failures: dict[int, Failure] = {}
        self._heard: dict[int, float] = {}  # when, by node; written by the thread
        self._missing_for_good: list[int] = []
        self._to_send: deque[Failure] = deque()
        self._timeout = timeout_seconds
        self._store: TCPStore | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> NodeLink:
        self._store = self._hold() if self.nodes.rank == 0 else self._connect()
        if self._ask("add", f"here/{self.nodes.rank}", 1) > 1:
            self._store = None
            raise InputError(
                f"--node-rank {self.nodes.rank} (distributed.node_rank): another machine has this number; each of the "
                f"{self.nodes.number} needs its own."
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(_ANSWER_SECONDS)
        if self._thread is None or not self._thread.is_alive():  # else it waits for a store that does not answer
            with contextlib.suppress(NodeLost):
                self._send()
                self._ask("set", f"ended/{self.nodes.rank}", str(self.code))
                if self.nodes.rank == 0:
                    self._linger()
        self._store = None

    def _hold(self) -> TCPStore:
        return _store("localhost", self.nodes.link_port, holds=True)

    def _connect(self) -> TCPStore:
        where, port = self.nodes.master_addr, self.nodes.link_port
        if not self._wait(lambda: answers(where, port), lambda: f"Node 0 to answer at {where}:{port}"):
            raise InputError(
                f"--master-addr {where}, --master-port {self.nodes.master_port}: node 0 did not answer at "
                f"{where}:{port} within {self._timeout / 60:g} minutes (distributed.timeout_minutes). Start the same "
                f"command there, with --node-rank 0; this port and the one before it have to be open to all machines."
            )
        try:
            return _store(where, port, holds=False)
        except RuntimeError as error:
            raise InputError(
                f"--master-addr {where}, --master-port {self.nodes.master_port}: what answers at port {port} is not "
                f"node 0 of an Atlas run ({str(error).splitlines()[0]})."
            ) from None

    # ---- before the ranks --------------------------------------------------------------------------------

    def publish(self, run_dir: Path, checkpoint: Path | None) -> None:
        """Node 0: wait for the others, then tell them which run it is. Raises NodeLost where one does not come."""
        if not self._wait(lambda: not self._missing(), lambda: _nodes(self._missing())):
            missing = self._missing()
            self._missing_for_good = missing
            raise NodeLost(
                f"{_nodes(missing)} of {self.nodes.number} did not come within {self._timeout / 60:g} minutes "
                f"(distributed.timeout_minutes). Start the same command on each machine, with its --node-rank (in a "
                f"job of SLURM: with srun), or add --num-nodes 1."
            )
        told = {
            "run_dir": str(run_dir),
            "checkpoint": str(checkpoint) if checkpoint is not None else None,
            "config": _digest(run_dir / CONFIG),
            "absolute": os.path.abspath(run_dir),
        }
        self._ask("set", "run", json.dumps(told))

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Node 0: around the preparation; what it raises, the others are told."""
        try:
            yield
        except BaseException as error:
            wrong_input = isinstance(error, InputError)
            message = str(error) if wrong_input else f"{type(error).__name__}: {first_line(error)}"
            with contextlib.suppress(NodeLost):
                self._ask("set", "run", json.dumps({"refused": message, "wrong_input": wrong_input}))
            raise

    def receive(self) -> tuple[Path, Path | None]:
        """The others: the run's folder and the checkpoint to go on from, once node 0 has prepared them.

        Raises InputError with node 0's message where it refuses, and where this machine does not see the run's
        folder; NodeLost where node 0 ends without a word, or takes longer than the timeout.
        """
        if not self._wait(lambda: self._has("run"), lambda: "Node 0 to prepare the run"):
            raise NodeLost(
                f"Node 0 has not prepared the run within {self._timeout / 60:g} minutes (distributed.timeout_minutes)."
            )
        told: dict[str, Any] = json.loads(self._ask("get", "run"))
        if "refused" in told:
            if told["wrong_input"]:
                raise InputError(told["refused"])
            raise NodeLost(f"Node 0 could not prepare the run ({told['refused']}); what it has printed says more.")
        run_dir = Path(told["run_dir"])
        _check_shared(run_dir, told)
        return run_dir, Path(told["checkpoint"]) if told["checkpoint"] else None

    def _missing(self) -> list[int]:
        return [node for node in range(1, self.nodes.number) if not self._has(f"here/{node}")]

    def _wait(self, done: Callable[[], bool], for_what: Callable[[], str]) -> bool:
        """Whether it was done within the timeout; says what is waited for when that takes long."""
        start = time.monotonic()
        said = False
        while not done():
            waited = time.monotonic() - start
            if waited > self._timeout:
                return False
            if waited > _SAY_SECONDS and not said:
                said = True
                print(f"Waiting for {for_what()}.", file=sys.stderr)
            time.sleep(_LOOK_SECONDS)
        return True

    def wait_for_master_port(self) -> None:
        """Until torch's store on node 0 is there: torch complains about each attempt that fails. Raises NodeLost."""
        host, port = self.nodes.master_addr, self.nodes.master_port
        if self.nodes.rank and not self._wait(lambda: answers(host, port), lambda: f"Node 0 to start at {host}:{port}"):
            raise NodeLost(
                f"Node 0 prepared the run and did not start its processes: nothing answers at {host}:{port}."
            )

    # ---- while the ranks run -----------------------------------------------------------------------------

    def watch(self) -> None:
        """Begin to tell the others that this node is there, and to look whether they are."""
        self._heard = dict.fromkeys(self._others, time.monotonic())
        self._thread = threading.Thread(target=self._watch, name="atlas-nodes", daemon=True)
        self._thread.start()

    def failures(self) -> list[Failure]:
        """What is known to have failed on other nodes. Never waits."""
        for node in self._silent():
            text = f"nothing was heard of it for {_SILENCE_SECONDS:g} s; its launcher or the machine is gone"
            self._failures.setdefault(node, Failure(node, text, consequence=False))
        return list(self._failures.values())

    @property
    def cause(self) -> Failure | None:
        """What failed first on another machine, by itself."""
        return next((failure for failure in self.failures() if not failure.consequence), None)

    @property
    def first_failure(self) -> Failure | None:
        """The cause, or where none is known, a consequence on another machine."""
        return self.cause or next(iter(self.failures()), None)

    def tell_failure(
        self, text: str, *, consequence: bool = False, hang: bool = False, at_once: bool = False, code: int = 1
    ) -> None:
        """Have the others told, soon, that ranks of this node have failed; as `Failure` has it. Never waits."""
        self.told = True
        self._to_send.append(Failure(self.nodes.rank, text, consequence, hang, at_once, code or 1))

    def wait_for_cause(self) -> None:
        """Where ranks here ended because of others: wait until it is known why, as long as noticing can take."""
        end = time.monotonic() + _SILENCE_SECONDS + 2 * _BEAT_SECONDS
        while self.cause is None and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)

    def _watch(self) -> None:
        beats = dict.fromkeys(self._others, -1)
        count = 0
        while not self._over.wait(_BEAT_SECONDS):
            count += 1
            try:
                self._send()
                self._ask("set", f"beat/{self.nodes.rank}", str(count))
                for node in self._others:
                    self._hear(node, beats)
            except NodeLost:
                self._failures.setdefault(0, Failure(0, "its launcher has ended", consequence=False))
                return

    def _silent(self) -> set[int]:
        return {node for node, at in self._heard.items() if time.monotonic() - at > _SILENCE_SECONDS}

    def _send(self) -> None:
        while self._to_send:
            self._ask("set", f"failed/{self.nodes.rank}", json.dumps(asdict(self._to_send[0])))
            self._to_send.popleft()

    def _hear(self, node: int, beats: dict[int, int]) -> None:
        if self._has(f"failed/{node}"):
            self._failures[node] = Failure(**json.loads(self._ask("get", f"failed/{node}")))
        if self._has(f"ended/{node}"):
            self._heard[node] = time.monotonic()
            code = int(self._ask("get", f"ended/{node}"))
            if code not in IN_GOOD_ORDER:
                self._failures.setdefault(node, Failure(node, f"it ended with code {code}", True, code=code))
            return
        beat = int(self._ask("get", f"beat/{node}")) if self._has(f"beat/{node}") else -1
        if beat != beats[node]:
            beats[node], self._heard[node] = beat, time.monotonic()

    # ---- the store ---------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Keep the store until the others have read and ended, within limits."""
        end = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < end:
            others = set(self._others) - self._silent() - set(self._missing_for_good)
            if all(self._has(f"ended/{node}") for node in others):
                return
            time.sleep(_LOOK_SECONDS)

    def _has(self, key: str) -> bool:
        return bool(self._ask("check", [key]))

    def _ask(self, what: str, *arguments: Any) -> Any:
        assert self._store is not None
        try:
            answer = getattr(self._store, what)(*arguments)
        except RuntimeError as error:
            if self.nodes.rank == 0:
                raise NodeLost(f"The store of the nodes failed: {str(error).splitlines()[0]}") from None
            raise NodeLost("Node 0 has ended; what it has printed says why.") from None
        return answer.decode() if isinstance(answer, bytes) else answer


def answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _store(host: str, port: int, holds: bool) -> TCPStore:
    from torch.distributed import TCPStore

    return TCPStore(host, port, is_master=holds, timeout=timedelta(seconds=_ANSWER_SECONDS), wait_for_workers=False)


def _check_shared(run_dir: Path, told: dict[str, Any]) -> None:
    """Wait until this machine sees the config that node 0 has written. Raises InputError where it does not."""
    end = time.monotonic() + _SHARED_SECONDS
    while _digest(run_dir / CONFIG) != told["config"]:
        if time.monotonic() > end:
            raise InputError(
                f"{os.path.abspath(run_dir)} is not the run's folder that node 0 has made ({told['absolute']}). All "
                f"machines need the same output_dir, on a file system that they share: start in the same folder, or "
                f"give an absolute output_dir."
            )
        time.sleep(_LOOK_SECONDS)


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _nodes(numbers: Sequence[int]) -> str:
    return f"Node{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
