"""The meeting of a run's launchers, and what they tell each other while its ranks run: who is there, who has failed.

The first launcher holds torch's store, which torchrun's static rendezvous and the ranks use as well: a run has one
meeting point and one port. A run on one machine has it on the loopback interface only. torchrun's other rendezvous,
c10d, would unpickle what a stranger puts into the store, and would choose the first machine by host name.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from atlas.errors import InputError, first_line
from atlas.launch.nodes import LOOPBACK, Nodes
from atlas.launch.reports import IN_GOOD_ORDER
from atlas.system.documents import parse_json

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_BEAT_SECONDS = 0.5
_SILENCE_SECONDS = 15.0  # a machine without a heartbeat for so long counts as gone
_LOOK_SECONDS = 0.1
_ANSWER_SECONDS = 10.0  # for the store to answer
_SAY_SECONDS = 10.0  # after waiting so long, it says what it waits for
_LINGER_SECONDS = 30.0  # for which the first one waits for the others to end: they learn of failures through its store


class NodeLost(Exception):
    """Another machine is gone, or never came. This is usually neither wrong input nor a bug."""

    exit_code = 1


@dataclass(frozen=True)
class Failure:
    """A node's report about the failure of its ranks."""

    node: int
    text: str  # the first cause, in one line
    consequence: bool = False  # whether it only says that another rank is gone
    hang: bool = False  # whether nothing moved for too long
    code: int = 1  # the exit code to end with


class Meeting:
    """This machine's part in the meeting. Inside `with`, all machines of the run are there, or an error was raised."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.code = 1  # the exit code of this node's ranks, once they have ended
        self._others = [node for node in range(nodes.number) if node != nodes.rank]
        self._beats = 0
        self._own: Failure | None = None
        self._ended = False
        self._failures: dict[int, Failure] = {}
        self._last: dict[int, bytes] = {}  # the last thing each of the others has sent; written by the thread
        self._heard: dict[int, float] = {}  # and when; without those that have ended
        self._store: TCPStore | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="atlas-nodes", daemon=True)

    def __enter__(self) -> Meeting:
        """Raises InputError if an address, a port or a number is wrong; NodeLost if a machine does not come."""
        self._store = self._connect() if self.nodes.rank else self._hold()
        try:
            self._wait_for_all()
        except BaseException:
            self._store = None
            raise
        if self._others:
            self._heard = dict.fromkeys(self._others, time.monotonic())
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        if self._others:
            self._thread.join(_ANSWER_SECONDS)
            if not self._thread.is_alive():  # otherwise it waits for a store that does not answer
                self._ended = True
                with contextlib.suppress(NodeLost):
                    self._say()
                    self._linger()
        self._store = None

    def _wait_for_all(self) -> None:
        nodes = self.nodes
        if self._ask("add", f"here/{nodes.rank}", 1) > 1:
            raise InputError(
                f"--node-rank {nodes.rank} (distributed.node_rank): another machine has this number; each of the "
                f"{nodes.number} needs its own."
            )
        self._say()
        if not self._wait(lambda: not self._missing(), lambda: _named(self._missing())):
            raise NodeLost(
                f"{_named(self._missing())} of {nodes.number} did not come within {nodes.wait_minutes:g} minutes "
                f"(distributed.timeout_minutes). Start the same command on each machine, with its --node-rank (in a "
                f"job of SLURM: with srun), or add --num-nodes 1."
            )

    def torchrun_options(self) -> list[str]:
        """The options by which torchrun finds this meeting."""
        assert self._store is not None
        where = ["--master-addr", self.nodes.master_addr, "--master-port", str(self._store.port)]
        return ["--nnodes", str(self.nodes.number), "--node-rank", str(self.nodes.rank), *where]

    # ---- while the ranks run -----------------------------------------------------------------------------

    @property
    def told(self) -> bool:
        """Whether this node has reported a failure."""
        return self._own is not None

    def tell(self, text: str, *, consequence: bool = False, hang: bool = False, code: int = 1) -> None:
        """Report soon to the others that ranks of this node have failed; see `Failure`. Never waits."""
        self._own = Failure(self.nodes.rank, text, consequence, hang, code or 1)

    def failures(self) -> list[Failure]:
        """The known failures of other nodes. Never waits."""
        for node in self._silent():
            text = f"nothing was heard from it for {_SILENCE_SECONDS:g} s; its launcher or the machine is gone"
            self._failures.setdefault(node, Failure(node, text))
        return list(self._failures.values())

    @property
    def cause(self) -> Failure | None:
        """The first failure on another machine that does not follow from another one."""
        return next((failure for failure in self.failures() if not failure.consequence), None)

    @property
    def first_failure(self) -> Failure | None:
        """The cause, or if none is known, a consequence on another machine."""
        return self.cause or next(iter(self.failures()), None)

    def wait_for_cause(self) -> None:
        """If ranks here ended because of others, wait until it is known why, for as long as noticing it can take."""
        end = time.monotonic() + _SILENCE_SECONDS + 2 * _BEAT_SECONDS
        while self._others and self.cause is None and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)

    def _watch(self) -> None:
        try:
            while not self._over.wait(_BEAT_SECONDS):
                self._say()
                self._listen()
        except NodeLost:
            self._failures.setdefault(0, Failure(0, "its launcher has ended"))

    def _say(self) -> None:
        self._beats += 1
        failure, code = self._own and asdict(self._own), self.code if self._ended else None
        told = {"beats": self._beats, "failure": failure, "code": code}
        self._ask("set", _key(self.nodes.rank), json.dumps(told))

    def _listen(self) -> None:
        for node, text in zip(self._others, self._ask("multi_get", list(map(_key, self._others))), strict=True):
            if text == self._last.get(node):
                continue
            self._last[node], self._heard[node] = text, time.monotonic()
            failure, code = _understood(node, text)
            if failure is not None:
                self._failures.setdefault(node, failure)
            if code is not None:
                self._heard.pop(node)
                if code not in IN_GOOD_ORDER:
                    ended = Failure(node, f"it ended with code {code}", consequence=True, code=code)
                    self._failures.setdefault(node, ended)

    def _silent(self) -> list[int]:
        return [node for node, at in list(self._heard.items()) if time.monotonic() - at > _SILENCE_SECONDS]

    def _linger(self) -> None:
        """The first one keeps the store until the others have read it and ended, within limits."""
        end = time.monotonic() + _LINGER_SECONDS
        while self.nodes.rank == 0 and set(self._heard) - set(self._silent()) and time.monotonic() < end:
            self._listen()
            time.sleep(_LOOK_SECONDS)

    # ---- the store ---------------------------------------------------------------------------------------

    def _hold(self) -> TCPStore:
        nodes = self.nodes
        if nodes.number == 1:
            listening = socket.create_server((LOOPBACK, 0))
            return _store(LOOPBACK, listening.getsockname()[1], is_master=True, master_listen_fd=listening.detach())
        try:
            return _store("localhost", nodes.master_port, is_master=True)
        except RuntimeError as error:
            raise InputError(
                f"--master-port {nodes.master_port} (distributed.master_port) cannot be used on this machine "
                f"({first_line(error)}). Choose another, the same on every machine."
            ) from None

    def _connect(self) -> TCPStore:
        nodes = self.nodes
        host, port = nodes.master_addr, nodes.master_port
        if not self._wait(lambda: _answers(host, port), lambda: f"Node 0 to answer at {host}:{port}"):
            raise InputError(
                f"--master-addr {host}, --master-port {port}: node 0 did not answer there within "
                f"{nodes.wait_minutes:g} minutes (distributed.timeout_minutes). Start the same command there, with "
                f"--node-rank 0; this port has to be open to all machines."
            )
        try:
            return _store(host, port)
        except RuntimeError as error:
            raise InputError(
                f"--master-addr {host}, --master-port {port}: what answers there is not node 0 of an Atlas run "
                f"({first_line(error)})."
            ) from None

    def _missing(self) -> list[int]:
        return [node for node in self._others if not self._ask("check", [_key(node)])]

    def _wait(self, done: Callable[[], bool], for_what: Callable[[], str]) -> bool:
        """Whether it was done in time; says what it waits for if that takes long."""
        start = time.monotonic()
        said = False
        while not done():
            waited = time.monotonic() - start
            if waited > 60 * self.nodes.wait_minutes:
                return False
            if waited > _SAY_SECONDS and not said:
                said = True
                print(f"Waiting for {for_what()}.", file=sys.stderr)
            time.sleep(_LOOK_SECONDS)
        return True

    def _ask(self, what: str, *arguments: Any) -> Any:
        assert self._store is not None
        try:
            return getattr(self._store, what)(*arguments)
        except RuntimeError as error:
            if self.nodes.rank == 0:
                raise NodeLost(f"The store of the nodes failed: {first_line(error)}") from None
            raise NodeLost("Node 0 has ended; its output says why.") from None


def _named(nodes: list[int]) -> str:
    return f"Node{'s' if len(nodes) > 1 else ''} {', '.join(map(str, nodes))}"


def _key(node: int) -> str:
    return f"node/{node}"


def _store(host: str, port: int, **more: Any) -> TCPStore:
    from torch.distributed import TCPStore

    # With several tenants, torchrun (in this process too) uses the one that listens.
    wait = timedelta(seconds=_ANSWER_SECONDS)
    return TCPStore(host, port, timeout=wait, wait_for_workers=False, multi_tenant=True, **more)


def _understood(node: int, text: bytes) -> tuple[Failure | None, int | None]:
    """The failure and the exit code that a launcher reports; whoever reaches the store may have written nonsense."""
    try:
        told = parse_json(text)
        code = None if told["code"] is None else int(told["code"])
        return Failure(**told["failure"]) if told["failure"] else None, code
    except (ValueError, LookupError, TypeError):
        return Failure(node, "what it reports is not what Atlas's launcher reports"), None


def _answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
