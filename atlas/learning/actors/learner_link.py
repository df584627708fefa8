"""Both ends of the connection between actors and their learner, over ZMQ."""

from __future__ import annotations

import errno
import logging
import secrets
import time
from contextlib import suppress
from typing import Any

import atlas
from atlas.errors import InputError
from atlas.learning.actors.messages import (
    PROTOCOL,
    Address,
    Experience,
    Hello,
    Message,
    Refused,
    Weights,
    Welcome,
    WrongKey,
    from_frames,
    to_frames,
)
from atlas.serving.access import Access

logger = logging.getLogger(__name__)

_LARGEST = 256 * 2**20  # bytes of a message
_LINGER_MS = 2000
_PATIENCE = 10.0  # seconds without an answer, after which an actor says hello again


def import_zmq() -> Any:
    """Import zmq. Raises InputError, which says how to install what is missing."""
    try:
        import msgpack  # noqa: F401
        import zmq
    except ModuleNotFoundError as error:
        raise InputError(
            f"Actor and learner talk through {error.name}, which is missing: pip install 'atlas-vla[serve]'"
        ) from None
    return zmq


class LearnerEnd:
    """Listens for actors. Use `close`."""

    def __init__(self, address: Address, key: str | None, about: str) -> None:
        """Raises InputError if the address is not available, or is open to other machines without a key."""
        if key is None and not Access(address.host).loopback:
            raise InputError(
                f"--listen {address} can be reached from other machines, and there is no key: whoever reaches it could "
                "send experience. Give --api-key-file, the same to the actors, or listen on 127.0.0.1."
            )
        self._zmq, self._key, self._about = import_zmq(), key, about
        self._context = self._zmq.Context()
        self._socket = self._context.socket(self._zmq.ROUTER)
        self._socket.setsockopt(self._zmq.MAXMSGSIZE, _LARGEST)
        self._socket.setsockopt(self._zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(self._zmq.IPV6, int(":" in address.host))
        try:
            self._socket.bind(address.endpoint)
        except self._zmq.ZMQError as error:
            self._context.destroy(0)
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"--listen {address}: the port is in use, perhaps by another learner. Give another, such as "
                    f"--listen {address.host}:{address.port + 1}, and the same to the actors as --learner."
                ) from None
            raise InputError(f"--listen {address} cannot be listened on: {error.strerror}.") from None
        self.port = int(self._socket.getsockopt_string(self._zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._clients: dict[bytes, int] = {}  # {connection: the number of the actor at its end}

    def receive(self, seconds: float) -> tuple[bytes, Hello | Experience] | None:
        """The next message of an actor within this time, or None; a message that does not fit is refused."""
        if not self._socket.poll(seconds * 1000):
            return None
        client, *frames = self._socket.recv_multipart()
        try:
            message = from_frames(frames, self._key)
            if (why := self._misfit(message)) is None:
                return client, message  # type: ignore[return-value]
        except WrongKey:
            why = "its key is another one: give both the same --api-key-file"
        except InputError as error:
            why = str(error)
        logger.warning("An actor was refused: %s", why)
        self.answer(client, Refused(why))
        return None

    def _misfit(self, message: Message) -> str | None:
        """The reason to refuse a message; None for a piece of experience, or the hello of an actor that fits."""
        if isinstance(message, Experience):
            return None
        if not isinstance(message, Hello):
            return f"a learner is not told a {type(message).__name__}"
        if (message.version, message.protocol) != (atlas.__version__, PROTOCOL):
            return f"it runs Atlas {atlas.__version__}, and the actor {message.version}: install the same on both"
        if message.about != self._about:
            return (
                f"it learns {self._about}, and the actor plays {message.about}: start both with the same --env, "
                "--checkpoint and config"
            )
        return None

    def known(self, client: bytes, actor: int) -> None:
        """Register an actor's connection; that of a restarted actor replaces its old one."""
        self._clients = {each: number for each, number in self._clients.items() if number != actor} | {client: actor}

    def clients(self) -> list[tuple[bytes, int]]:
        """All actors: (connection, number)."""
        return list(self._clients.items())

    def is_known(self, client: bytes) -> bool:
        return client in self._clients

    def answer(self, client: bytes, message: Message) -> None:
        with suppress(self._zmq.ZMQError):  # it is gone
            self._socket.send_multipart([client, *to_frames(message, self._key)])

    def push(self, weights: Weights) -> None:
        """Send weights to all actors."""
        frames = to_frames(weights, self._key)
        for client in self._clients:
            with suppress(self._zmq.ZMQError):
                self._socket.send_multipart([client, *frames])

    def close(self) -> None:
        self._context.destroy(_LINGER_MS)


class LearnerGone(RuntimeError):
    """No learner answers."""

    exit_code = 1


class ActorEnd:
    """An actor's connection, which is renewed when the learner restarts. Use `close`."""

    def __init__(self, address: Address, key: str | None, about: str, timeout: float) -> None:
        self._zmq, self._address, self._key, self._about = import_zmq(), address, key, about
        self._timeout, self._token = timeout, secrets.token_hex(8)
        self._context = self._zmq.Context()
        self._socket: Any = None
        self._last_heard = time.monotonic()
        self.actor = -1

    def hello(self) -> Welcome:
        """Connect, and wait for the learner's welcome; log once that it waits. Raises InputError if the learner
        refuses, LearnerGone if it does not answer in time."""
        since, warned = time.monotonic(), False
        while True:
            self._connect()
            self.send(Hello(atlas.__version__, PROTOCOL, self._about, self.actor, self._token))
            reply = self.receive(min(2.0, self._timeout))
            if isinstance(reply, Welcome):
                self.actor = reply.actor
                return reply
            if not warned:
                logger.warning("Waiting for the learner at %s", self._address)
                warned = True
            if time.monotonic() - since > self._timeout:
                raise LearnerGone(
                    f"No learner answers at {self._address} after {self._timeout:g} s. Start it first: the same "
                    f"command with --role learner --listen {self._address}."
                )

    def _connect(self) -> None:
        """Open a new socket: messages queued in the old one would arrive twice."""
        if self._socket is not None:
            self._socket.close(0)
        self._socket = self._context.socket(self._zmq.DEALER)
        self._socket.setsockopt(self._zmq.MAXMSGSIZE, _LARGEST)
        self._socket.setsockopt(self._zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(self._zmq.IPV6, int(":" in self._address.host))
        self._socket.connect(self._address.endpoint)
        self._last_heard = time.monotonic()

    def send(self, message: Message) -> None:
        with suppress(self._zmq.Again):
            self._socket.send_multipart(to_frames(message, self._key), flags=self._zmq.NOBLOCK)

    def receive(self, seconds: float) -> Message | None:
        """The learner's next message within this time, or None. Raises InputError if it refuses this actor."""
        if not self._socket.poll(seconds * 1000):
            return None
        try:
            message = from_frames(self._socket.recv_multipart(), self._key)
        except WrongKey:
            raise InputError(
                f"The learner at {self._address} has another key: give both the same --api-key-file."
            ) from None
        self._last_heard = time.monotonic()
        if isinstance(message, Refused):
            raise InputError(f"The learner at {self._address} refuses this actor: {message.why}.")
        return message

    @property
    def silent(self) -> bool:
        """Whether the learner should have answered by now."""
        return time.monotonic() - self._last_heard > _PATIENCE

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close(_LINGER_MS)
        self._context.term()
