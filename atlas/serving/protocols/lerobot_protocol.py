"""LeRobot's asynchronous inference over gRPC: its robot client with an Atlas policy.

The client names the checkpoint that it wants (which must be the one served), sends observations in pieces, and asks for
actions meanwhile. Only its newest observation counts. An observation whose step is already planned, or whose state is
close to that of the last planned one, is skipped unless the client marks it as `must_go`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas.errors import InputError
from atlas.serving.access import Access, Limits, Listening, refused_address
from atlas.serving.policy_service import PolicyService, failed
from atlas.serving.protocols.client_layout import ObservationReader
from atlas.serving.protocols.lerobot_pickles import (
    PolicySetup,
    TimedObservation,
    read_observation,
    read_setup,
    write_actions,
)

if TYPE_CHECKING:
    import grpc

logger = logging.getLogger(__name__)

_SERVICE = "transport.AsyncInference"
_WAIT_SECONDS = 2.0  # for an observation, when actions are requested
_NEAR = 1.0  # the Euclidean distance below which two states count as close
_END = 3  # marks an observation's last piece
_KEPT_STEPS = 10_000
_MAY_BE_GONE_SECONDS = 20.0  # without a request, where another client needs the session


def import_grpc() -> None:
    """Raise InputError, which says how to install what is missing."""
    try:
        import grpc  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"LeRobot's protocol needs {error.name}: pip install 'atlas-vla[serve]'") from None


@dataclass
class _Robot:
    """The state of one client."""

    session: int
    setup: PolicySetup | None = None
    waiting: TimedObservation | None = None
    state: np.ndarray | None = None  # of the last planned observation
    planned: dict[int, None] = field(default_factory=dict)  # steps, in the order of planning
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class LeRobotProtocol:
    """Talks with the robots of one service; a connection is a session."""

    def __init__(self, service: PolicyService, reader: ObservationReader, checkpoint: str, limits: Limits) -> None:
        """checkpoint: the one that the server was started with; clients ask for it by this name or its last part."""
        self._service, self._reader, self._limits = service, reader, limits
        self._names = {checkpoint, PurePosixPath(checkpoint.rstrip("/")).name}
        self._checkpoint = checkpoint
        self._robots: dict[str, _Robot] = {}
        self._last_request: dict[str, float] = {}
        self._key: Access | None = None

    async def listen(self, access: Access) -> Listening:
        """Raises InputError where it cannot listen on the address."""
        import_grpc()
        import grpc

        self._key = access
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._limits.message_bytes),
                ("grpc.so_reuseport", 0),  # a port in use is an error
            ],
            maximum_concurrent_rpcs=4 * self._limits.sessions,
        )
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        methods = {
            "Ready": unary(self._ready),
            "SendPolicyInstructions": unary(self._take_setup),
            "SendObservations": stream(self._take_observation),
            "GetActions": unary(self._get_actions),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
        host = f"[{access.host}]" if ":" in access.host else access.host
        try:
            port = server.add_insecure_port(f"{host}:{access.port}")
        except RuntimeError as error:
            raise refused_address(
                access, OSError(errno.EADDRINUSE if "in use" in str(error) else 0, str(error))
            ) from None
        await server.start()

        async def stop() -> None:
            await server.stop(grace=0)

        return Listening(port, stop)

    # ---- the four requests -------------------------------------------------------------------------------

    async def _ready(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await self._answered(context, self._begin, context.peer())
        return b""

    async def _take_setup(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await self._answered(context, self._set_up, context.peer(), request)
        return b""

    async def _take_observation(self, pieces: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        seconds = self._limits.answer_seconds
        try:
            data = await asyncio.wait_for(self._whole(pieces), seconds)
        except (InputError, asyncio.TimeoutError) as error:
            await self._refused(context, str(error) or f"an observation took more than {seconds:g} seconds")
        await self._answered(context, self._arrive, context.peer(), data)
        return b""

    async def _whole(self, pieces: AsyncIterator[bytes]) -> bytes:
        """An observation joined from its pieces. Raises InputError where it is too large or lacks its last piece."""
        whole = bytearray()
        ended = False
        async for piece in pieces:  # all of them, so that gRPC releases them
            whole += _bytes_of(piece, 2)
            if len(whole) > self._limits.message_bytes:
                raise InputError(f"An observation takes more than {self._limits.message_bytes} bytes.")
            ended = _number_of(piece, 1) == _END
        if not ended:
            raise InputError("The last piece of the observation is missing.")
        return bytes(whole)

    async def _get_actions(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        robot: _Robot = await self._answered(context, self._robot, context.peer())
        try:
            await asyncio.wait_for(robot.arrived.wait(), _WAIT_SECONDS)
        except asyncio.TimeoutError:
            return b""
        timed, robot.waiting = robot.waiting, None
        robot.arrived.clear()
        if timed is None or robot.setup is None:
            return b""
        answer = b""
        try:
            answer = await self._planned(robot, robot.setup, timed)
        except InputError as error:
            await self._refused(context, str(error))
        except Exception as error:  # every request gets an answer
            import grpc

            await context.abort(grpc.StatusCode.INTERNAL, failed(error))
        return answer

    async def _planned(self, robot: _Robot, setup: PolicySetup, timed: TimedObservation) -> bytes:
        observation = self._reader.read(_message(timed, setup))
        answer = await asyncio.wait_for(self._service.act(robot.session, observation), self._limits.answer_seconds)
        robot.state = observation.proprio
        robot.planned[timed.timestep] = None
        while len(robot.planned) > _KEPT_STEPS:
            del robot.planned[next(iter(robot.planned))]
        period = 1 / self._service.processor.action_spec.control_hz
        return _field(1, write_actions(answer.actions[: setup.actions], timed, period, setup.module))

    # ---- robots ------------------------------------------------------------------------------------------

    def _begin(self, peer: str) -> None:
        """Begin an episode of this client."""
        if peer in self._robots:
            self._service.close(self._robots.pop(peer).session)
        self._forget(self._limits.idle_seconds)
        if self._service.full:
            self._forget(_MAY_BE_GONE_SECONDS)
        self._robots[peer] = _Robot(self._service.open())
        self._last_request[peer] = time.monotonic()

    def _set_up(self, peer: str, request: bytes) -> None:
        setup = read_setup(_bytes_of(request, 1))
        if setup.checkpoint not in self._names:
            raise InputError(
                f"This server serves {self._checkpoint} and loads nothing else: start the client with "
                f"--pretrained_name_or_path={self._checkpoint} instead of {setup.checkpoint!r:.200}."
            )
        self._robot(peer).setup = setup

    def _robot(self, peer: str) -> _Robot:
        if peer not in self._robots:
            raise InputError("This client has not said that it is ready; call Ready first.")
        self._last_request[peer] = time.monotonic()
        return self._robots[peer]

    def _forget(self, seconds: float) -> None:
        """End the sessions of clients silent for this long: gRPC does not report that a client has left."""
        now = time.monotonic()
        for peer in [peer for peer in self._robots if now - self._last_request[peer] > seconds]:
            self._service.close(self._robots.pop(peer).session)
            del self._last_request[peer]

    def _arrive(self, peer: str, data: bytes) -> None:
        robot = self._robot(peer)
        if robot.setup is None:
            raise InputError("An observation came before the policy's setup; call SendPolicyInstructions first.")
        timed = read_observation(data)
        if not timed.must_go and robot.state is not None:
            state = _message(timed, robot.setup)["observation.state"]
            near = len(state) == len(robot.state) and float(np.linalg.norm(state - robot.state)) < _NEAR
            if timed.timestep in robot.planned or near:
                return
        robot.waiting = timed
        robot.arrived.set()

    async def _answered(self, context: grpc.aio.ServicerContext, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of `work`. A client without the key, or with a wrong request, gets an error status of gRPC's."""
        import grpc

        assert self._key is not None
        sent = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not self._key.allows(str(sent).removeprefix("Api-Key ").removeprefix("Bearer ")):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this server needs authorization: Api-Key KEY")
        try:
            return work(*arguments)
        except InputError as error:
            await self._refused(context, str(error))

    async def _refused(self, context: grpc.aio.ServicerContext, why: str) -> None:
        import grpc

        logger.warning("A client was refused: %s", why)  # LeRobot's own client does not show it
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)


def _message(timed: TimedObservation, setup: PolicySetup) -> dict[str, Any]:
    """An observation with the keys of LeRobot datasets. Raises InputError for a missing entry, and for a state that is
    not numbers."""
    missing = [name for name in (*setup.state_names, *setup.cameras) if name not in timed.observation]
    if missing:
        raise InputError(f"The observation lacks {', '.join(missing)}, which the client's setup names.")
    numbers = [timed.observation[name] for name in setup.state_names]
    try:
        state = np.array([float(number) for number in numbers], np.float32)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"The state should have one number for each of {', '.join(setup.state_names)}.") from None
    images = {key: timed.observation[name] for name, key in setup.cameras.items()}
    return {**images, "observation.state": state, "task": timed.observation.get("task", "")}


# ---- protobuf's wire format, for messages of numbers and bytes -------------------------------------------------


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field (protobuf.dev/programming-guides/encoding). Raises InputError."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            if place >= len(message) or shift > 63:
                raise InputError("A message is not one of this service's protobufs.")
            byte = message[place]
            place, value, shift = place + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        elif kind == 2:
            length = varint()
            if place + length > len(message):
                raise InputError("A message is not one of this service's protobufs.")
            yield number, message[place : place + length]
            place += length
        else:
            raise InputError("A message is not one of this service's protobufs.")


def _bytes_of(message: bytes, number: int) -> bytes:
    return next((value for n, value in _fields(message) if n == number and isinstance(value, bytes)), b"")


def _number_of(message: bytes, number: int) -> int:
    return next((value for n, value in _fields(message) if n == number and isinstance(value, int)), 0)


def _field(number: int, value: bytes) -> bytes:
    length, left = bytearray(), len(value)
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    length.append(left)
    return bytes([number << 3 | 2]) + bytes(length) + value
