"""A websocket server within limits, for the protocols that use one."""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from atlas.errors import InputError
from atlas.serving.access import Access, Limits, Listening, refused_address
from atlas.serving.policy_service import PolicyService
from atlas.system.websocket_client import import_websockets

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

logger = logging.getLogger(__name__)

_KEY_SCHEMES = ("Api-Key ", "Bearer ")
_OPEN_SECONDS = 10
_PING_SECONDS = 20
INTERNAL_ERROR = 1011  # the close code of RFC 6455, section 7.4.1


async def listen(
    talk: Callable[[ServerConnection], Awaitable[None]], access: Access, limits: Limits, full: Callable[[], bool]
) -> Listening:
    """Start to listen, and call `talk` with each admitted connection. full: whether to admit no more.

    GET /healthz answers 200 with "OK". Requests from web pages are refused: a page that is open in a browser on this
    machine must not move a robot. Raises InputError where it cannot listen on the address.
    """
    import_websockets()
    from websockets.asyncio.server import serve

    def admit(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not access.allows(_key_of(request)):
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "This server needs the header Authorization: Api-Key KEY.\n"
            )
        if full():
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "All sessions are taken; try again later.\n")
        return None

    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # anybody may break off a handshake
    try:
        server = await serve(
            talk,
            access.host,
            access.port,
            process_request=admit,
            origins=[None],
            compression=None,  # images do not shrink, and a small message must not become a large one
            max_size=limits.message_bytes,
            max_queue=1,  # messages that wait in memory; further ones wait at the client
            open_timeout=_OPEN_SECONDS,
            ping_interval=_PING_SECONDS,
            ping_timeout=limits.answer_seconds,
            close_timeout=1,
        )
    except OSError as error:
        raise refused_address(access, error) from None

    async def stop() -> None:
        server.close()
        await server.wait_closed()

    return Listening(next(iter(server.sockets)).getsockname()[1], stop)


@asynccontextmanager
async def session_of(service: PolicyService, connection: ServerConnection, limits: Limits) -> AsyncIterator[int | None]:
    """A session for as long as a connection lasts. Yields None, and closes the connection with the reason, where the
    last session was taken after the connection was admitted."""
    try:
        session = service.open()
    except InputError as error:
        await close_with_error(connection, str(error), limits)
        yield None
        return
    try:
        yield session
    finally:
        service.close(session)


async def receive(connection: ServerConnection, limits: Limits) -> str | bytes | None:
    """The next message; None where the client is gone, or has sent nothing for too long."""
    from websockets.exceptions import ConnectionClosed

    try:
        return await asyncio.wait_for(connection.recv(), limits.idle_seconds)
    except ConnectionClosed:
        return None
    except asyncio.TimeoutError:
        await connection.close(1001, f"no request for {limits.idle_seconds:g} seconds")
        return None


async def send(connection: ServerConnection, message: str | bytes, limits: Limits) -> bool:
    """Whether the client took the message; a client that does not read is cut off."""
    from websockets.exceptions import ConnectionClosed

    try:
        await asyncio.wait_for(connection.send(message), limits.answer_seconds)
        return True
    except ConnectionClosed:
        return False
    except asyncio.TimeoutError:
        connection.transport.abort()
        return False


async def close_with_error(connection: ServerConnection, text: str, limits: Limits) -> None:
    """Send the error in a text frame, then close with 1011."""
    if await send(connection, text, limits):
        await connection.close(INTERNAL_ERROR, "see the previous message")


def _key_of(request: Any) -> str | None:
    values = request.headers.get_all("Authorization")
    value = values[0] if len(values) == 1 else ""
    return next((value[len(scheme) :].strip() for scheme in _KEY_SCHEMES if value.startswith(scheme)), None)
