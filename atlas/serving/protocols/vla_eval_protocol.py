"""vla-eval's protocol over a websocket, so that one server works with all of its benchmarks.

Frames are {"type", "payload", "seq", "timestamp"} in msgpack. A benchmark says hello, begins episodes, and sends an
observation at every step; the answer to each is one action. The policy plans once per chunk; the server keeps the
chunk's other actions for the episode's next steps, and earlier frames for a policy that looks at them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas import __version__
from atlas.data.sampling.history import History, SeenFrames
from atlas.errors import InputError
from atlas.serving.access import Access, Limits, Listening
from atlas.serving.policy_service import PolicyService, failed
from atlas.serving.protocols.client_layout import ObservationReader
from atlas.serving.protocols.websocket_server import close_with_error, listen, receive, send, session_of
from atlas.system.array_codec import pack, unpack
from atlas.types import ActionGroup, ActionSpec

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

PROTOCOL_VERSION = 1
_KINDS = ("hello", "observation", "action", "episode_start", "episode_end", "error")
_ROTATIONS = {"axis_angle": "axis_angle", "euler_xyz": "euler_xyz", "quaternion": "quaternion_xyzw"}


class _Episode:
    """The state of a benchmark's episode between its steps."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.begin()

    def begin(self) -> None:
        self.rest: list[np.ndarray] = []  # of the chunk: one action per step
        self.frames = SeenFrames(self._history)


class VlaEvalProtocol:
    """Talks with the benchmarks of one service."""

    def __init__(self, service: PolicyService, reader: ObservationReader, limits: Limits) -> None:
        self._service, self._reader, self._limits = service, reader.of_one_frame(), limits

    async def listen(self, access: Access) -> Listening:
        """Raises InputError where it cannot listen on the address."""
        return await listen(self._talk, access, self._limits, lambda: self._service.full)

    async def _talk(self, connection: ServerConnection) -> None:
        episode = _Episode(self._service.processor.history)
        async with session_of(self._service, connection, self._limits) as session:
            while session is not None and (frame := await receive(connection, self._limits)) is not None:
                try:
                    message = _checked(frame)
                except InputError as error:
                    await close_with_error(connection, str(error), self._limits)
                    return
                answer = await self._answer(session, message, episode)
                if answer is not None and not await send(connection, answer, self._limits):
                    return

    async def _answer(self, session: int, message: Mapping[str, Any], episode: _Episode) -> bytes | None:
        kind = message["type"]
        if kind == "hello":
            version = message["payload"].get("protocol_version", PROTOCOL_VERSION)
            if version != PROTOCOL_VERSION:
                why = f"this server speaks version {PROTOCOL_VERSION} of vla-eval's protocol, not {version!r:.20}"
                return _frame("error", {"error": why}, message)
            return _frame("hello", self._hello(), message)
        if kind == "episode_start":
            episode.begin()
            self._service.reset(session)
        if kind != "observation":
            return None
        try:
            if not episode.rest or episode.frames.every_step:
                episode.frames.add(self._reader.read(message["payload"]))
            if not episode.rest:
                acting = self._service.act(session, episode.frames.latest())
                answer = await asyncio.wait_for(acting, self._limits.answer_seconds)
                episode.rest = list(answer.actions)
        except InputError as error:
            return _frame("error", {"error": str(error)}, message)
        except Exception as error:  # every request gets an answer
            return _frame("error", {"error": failed(error)}, message)
        return _frame("action", {"actions": episode.rest.pop(0)}, message)

    def _hello(self) -> dict[str, Any]:
        """The greeting from which a benchmark configures itself, and which it compares with what it takes."""
        processor = self._service.processor
        return {
            "harness_version": f"atlas {__version__}",
            "protocol_version": PROTOCOL_VERSION,
            "model_server": "atlas",
            "capabilities": {},
            "observation_params": {"send_wrist_image": len(processor.cameras) > 1, "send_state": True},
            "action_spec": described_actions(processor.action_spec),
        }


def described_actions(spec: ActionSpec) -> dict[str, dict[str, Any]]:
    """The groups of an action in vla-eval's terms."""
    described = {}
    for group in spec.groups:
        name = f"{group.arm}_{group.kind}" if group.arm else group.kind
        described[name] = {"name": name, "dims": len(group.names), "format": _format(group)}
    return described


def _format(group: ActionGroup) -> str:
    if group.kind == "position":
        return "delta_xyz" if group.delta else "absolute_xyz"
    if group.kind == "rotation":
        return _ROTATIONS.get(str(group.form), "raw")
    if group.kind == "gripper" and not group.continuous:
        ends = {(-1.0, 1.0): "binary_close_positive", (1.0, -1.0): "binary_close_negative"}
        return ends.get((group.open, group.closed), "raw")
    return "raw"


def _checked(frame: str | bytes) -> Mapping[str, Any]:
    """The message in a frame. Raises InputError for a frame that is not of this protocol."""
    expected = (
        f"vla-eval's protocol takes binary frames of type, payload, seq and timestamp; types: {', '.join(_KINDS)}."
    )
    if isinstance(frame, str):
        raise InputError(f"The message is text. {expected}")
    message = unpack(frame)
    if not isinstance(message, Mapping) or message.get("type") not in _KINDS:
        raise InputError(f"The message has none of these types. {expected}")
    if not isinstance(message.get("payload"), Mapping) or not isinstance(message.get("seq"), int):
        raise InputError(f"The message's payload is not a mapping, or its seq is not a number. {expected}")
    return message


def _frame(kind: str, payload: Mapping[str, Any], request: Mapping[str, Any]) -> bytes:
    """An answer, with the number of the message that it answers."""
    return pack({"type": kind, "payload": payload, "seq": request["seq"], "timestamp": time.time()}, "vla-eval")
