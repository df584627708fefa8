"""GR00T's protocol: ZMQ requests and replies in msgpack, with arrays in the client's form.

    {"endpoint": "ping" | "get_action" | "reset" | "get_modality_config", "data": {…}, "api_token": …}

The answer to `get_action` is [action, info]: the actions by group of the action space, float32 [1, n, D] each. `kill`,
by which any client can end GR00T's own server, is off unless the server was started with --allow-kill.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from atlas.errors import InputError, did_you_mean
from atlas.serving.access import Access, Limits, Listening, refused_address
from atlas.serving.policy_service import PolicyService, failed
from atlas.serving.protocols.client_layout import ObservationReader
from atlas.system.array_codec import Form, pack, unpack
from atlas.types import ActionSpec

logger = logging.getLogger(__name__)

_ENDPOINTS = ("ping", "get_action", "reset", "get_modality_config")
_MAY_BE_GONE_SECONDS = 10.0  # without a request, where another client needs the session
_MARKS: dict[Form, bytes] = {"groot-npy": b"__ndarray_class__", "groot-nd": b"\xc4\x02nd"}


def import_zmq() -> None:
    """Raise InputError, which says how to install what is missing."""
    try:
        import msgpack  # noqa: F401
        import zmq  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"GR00T's protocol needs {error.name}: pip install 'atlas-vla[serve]'") from None


class GrootProtocol:
    """Talks with the clients of one service; a connection is a session."""

    def __init__(
        self,
        service: PolicyService,
        reader: ObservationReader,
        sends: int,
        limits: Limits,
        on_kill: Callable[[], object] | None = None,
    ) -> None:
        """sends: actions per answer. on_kill: what the endpoint `kill` does; None refuses it."""
        self._service, self._reader, self._sends, self._limits = service, reader, sends, limits
        self._on_kill = on_kill
        self._sessions: dict[bytes, int] = {}
        self._last_request: dict[bytes, float] = {}
        self._forms: dict[bytes, Form] = {}  # of arrays, as the client last sent them
        self._answering: set[asyncio.Task[None]] = set()

    async def listen(self, access: Access) -> Listening:
        """Raises InputError where it cannot listen on the address."""
        import_zmq()
        import zmq
        import zmq.asyncio

        context = zmq.asyncio.Context()
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.MAXMSGSIZE, self._limits.message_bytes)
        socket.setsockopt(zmq.RCVHWM, 2)  # messages of one client that wait here; further ones wait at the client
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, int(":" in access.host))
        host = f"[{access.host}]" if ":" in access.host else access.host
        try:
            socket.bind(f"tcp://{'*' if host == '0.0.0.0' else host}:{access.port or '*'}")
        except zmq.ZMQError as error:
            context.destroy(0)
            raise refused_address(access, OSError(error.errno, error.strerror)) from None
        port = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        task = asyncio.create_task(self._serve(socket, access))

        async def stop() -> None:
            for each in (task, *self._answering):
                each.cancel()
            await asyncio.gather(task, *self._answering, return_exceptions=True)
            context.destroy(0)

        return Listening(port, stop)

    async def _serve(self, socket: Any, access: Access) -> None:
        while True:
            parts = await socket.recv_multipart()
            self._forget(self._limits.idle_seconds)
            if len(parts) != 3 or parts[1]:  # not from a REQ socket: only those understand an answer
                continue
            if len(self._answering) >= self._limits.sessions:
                await self._reply(socket, parts[0], {"error": "The server is busy; try again later."})
                continue
            task = asyncio.create_task(self._answer(socket, access, parts[0], parts[2]))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, socket: Any, access: Access, client: bytes, frame: bytes) -> None:
        try:
            for form, mark in _MARKS.items():
                if mark in frame:
                    self._forms[client] = form
            answer = await self._endpoint(client, unpack(frame), access)
        except InputError as error:
            answer = {"error": str(error)}
        except Exception as error:  # every request gets an answer
            answer = {"error": failed(error)}
        await self._reply(socket, client, answer)

    async def _reply(self, socket: Any, client: bytes, answer: Any) -> None:
        with suppress(Exception):  # the client is gone
            await socket.send_multipart([client, b"", pack(answer, self._forms.get(client, "groot-npy"))])

    async def _endpoint(self, client: bytes, request: Any, access: Access) -> Any:
        if not isinstance(request, Mapping):
            raise InputError("A request should be a mapping with an endpoint, and with data for get_action.")
        token = request.get("api_token")
        if not access.allows(token if isinstance(token, str) else None):
            raise InputError("Unauthorized: this server needs its key as api_token.")
        name, data = request.get("endpoint", "get_action"), request.get("data") or {}
        if name == "kill" and self._on_kill is not None:
            self._on_kill()
            return {"status": "ok", "message": "The server is shutting down."}
        if not isinstance(name, str) or name not in _ENDPOINTS or not isinstance(data, Mapping):
            more = " kill is off; the server was started without --allow-kill." if name == "kill" else ""
            raise InputError(
                f"There is no endpoint {name!r:.60}.{did_you_mean(str(name)[:60], _ENDPOINTS)} Known: "
                f"{', '.join(_ENDPOINTS)}.{more}"
            )
        if name == "ping":
            return {"status": "ok", "message": "Server is running"}
        if name == "get_modality_config":
            return self._modalities()
        session = self._session(client)
        if name == "reset":
            self._service.reset(session, _seed(data.get("options")))
            return {}
        return await self._actions(session, data.get("observation"))

    async def _actions(self, session: int, sent: Any) -> list[Any]:
        observation = self._reader.read(sent)
        answer = await asyncio.wait_for(self._service.act(session, observation), self._limits.answer_seconds)
        spec = self._service.processor.action_spec
        groups = zip(group_names(spec), spec.spans(), strict=True)
        info = {"infer_ms": answer.infer_ms, "wait_ms": answer.waited_ms}
        return [{name: answer.actions[None, :, part] for name, (_, part) in groups}, info]

    # ---- sessions ----------------------------------------------------------------------------------------

    def _session(self, client: bytes) -> int:
        """A client's session; ZMQ names the client. Raises InputError where active clients hold all sessions."""
        if client not in self._sessions:
            if self._service.full:
                self._forget(_MAY_BE_GONE_SECONDS)
            self._sessions[client] = self._service.open()
        self._last_request[client] = time.monotonic()
        return self._sessions[client]

    def _forget(self, seconds: float) -> None:
        """End the sessions of clients silent for this long: ZMQ does not report that a client has left."""
        now = time.monotonic()
        for client in [c for c, last in self._last_request.items() if now - last > seconds]:
            self._service.close(self._sessions.pop(client))
            del self._last_request[client]
        for client in list(self._forms.keys() - self._last_request.keys()):
            del self._forms[client]

    def _modalities(self) -> dict[str, Any]:
        """Describe the policy in GR00T's terms: the frames of each camera, the states, one text, and the actions of an
        answer."""
        processor = self._service.processor
        frames = (-processor.history.ago).tolist()
        steps = {"video": frames, "state": frames, "language": [0], "action": list(range(self._sends))}
        keys = {
            "video": list(processor.cameras),
            "state": ["state"],
            "language": ["task"],
            "action": group_names(processor.action_spec),
        }
        return {
            name: {"__ModalityConfig_class__": True, "as_json": {"delta_indices": steps[name], "modality_keys": each}}
            for name, each in keys.items()
        }


def group_names(spec: ActionSpec) -> list[str]:
    """A name for each group of an action space: its kind, with its arm, and a number where names would coincide."""
    labels = [group.label.replace(" ", "_") for group in spec.groups]
    return [
        label if labels.count(label) == 1 else f"{label}_{labels[:place].count(label)}"
        for place, label in enumerate(labels)
    ]


def _seed(options: Any) -> int:
    seed = options.get("seed", 0) if isinstance(options, Mapping) else 0
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**62:
        raise InputError(f"options: seed is {seed!r:.60}; it should be a whole number from 0 to 2**62 - 1.")
    return seed
