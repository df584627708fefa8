"""openpi's protocol over a websocket, which its own client, many robots and `AtlasClient` speak.

    connect           the server sends a description of its policy (a mapping)
    -> observation    a mapping of arrays and texts, in msgpack
    <- answer         {"actions": [n, A], "policy_timing": {…}, "server_timing": {…}}
    <- a text         what is wrong with the observation; the client may send another
                      where the policy fails, or the message cannot be read: the text, then the close code 1011

The first axis of every array in an answer is the chunk's: openpi's ActionChunkBroker slices all of them along it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from atlas.errors import InputError
from atlas.serving.access import Access, Limits, Listening
from atlas.serving.policy_service import Answer, PolicyService, failed
from atlas.serving.protocols.client_layout import ObservationReader
from atlas.serving.protocols.websocket_server import close_with_error, listen, receive, send, session_of
from atlas.serving.served_policy import ClientEntry, ServedPolicy
from atlas.system.array_codec import pack, unpack

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

logger = logging.getLogger(__name__)


class OpenpiProtocol:
    """Talks with the clients of one service."""

    def __init__(self, service: PolicyService, reader: ObservationReader, sends: int, limits: Limits) -> None:
        """sends: actions per answer."""
        self._service, self._reader, self._limits = service, reader, limits
        served = ServedPolicy(service.processor, sends, service.follows, service.validated_execute)
        self._greeting = pack(served.to_message(reader.expected()))

    async def listen(self, access: Access) -> Listening:
        """Raises InputError where it cannot listen on the address."""
        return await listen(self._talk, access, self._limits, lambda: self._service.full)

    async def _talk(self, connection: ServerConnection) -> None:
        async with session_of(self._service, connection, self._limits) as session:
            if session is not None and await send(connection, self._greeting, self._limits):
                await self._answer_all(connection, session)

    async def _answer_all(self, connection: ServerConnection, session: int) -> None:
        took_ms: float | None = None
        while (frame := await receive(connection, self._limits)) is not None:
            begun = time.monotonic()
            try:
                message = _message(frame)
            except InputError as error:
                await close_with_error(connection, str(error), self._limits)
                return
            try:
                answer: str | bytes = await self._answer(session, message, begun, took_ms)
            except InputError as error:
                answer = str(error)
            except Exception as error:  # every request gets an answer
                await close_with_error(connection, failed(error), self._limits)
                return
            if not await send(connection, answer, self._limits):
                return
            took_ms = 1000 * (time.monotonic() - begun)

    async def _answer(self, session: int, message: Any, begun: float, took_ms: float | None) -> bytes:
        entry = ClientEntry.from_message(message, self._service.processor, self._service.follows)
        observation = self._reader.read(message)
        if entry.seed is not None:
            self._service.reset(session, entry.seed)
        acting = self._service.act(session, observation, entry.running)
        answer = await asyncio.wait_for(acting, self._limits.answer_seconds)
        return pack({"actions": answer.actions, **_timings(answer, begun, took_ms)})


def _message(frame: str | bytes) -> Any:
    """The message in a frame. Raises InputError for a frame that is not of this protocol."""
    if isinstance(frame, str):
        raise InputError("This server speaks openpi's protocol: an observation is a binary frame of msgpack, not text.")
    return unpack(frame)


def _timings(answer: Answer, begun: float, took_ms: float | None) -> dict[str, dict[str, float]]:
    """The keys of openpi's server. The previous answer's total time is known only now."""
    server = {"infer_ms": 1000 * (time.monotonic() - begun), "wait_ms": answer.waited_ms, "batch": answer.together}
    if took_ms is not None:
        server["prev_total_ms"] = took_ms
    return {"policy_timing": {"infer_ms": answer.infer_ms}, "server_timing": server}
