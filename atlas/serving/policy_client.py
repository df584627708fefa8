"""The client of a policy server: an actor whose actions come over a websocket.

with AtlasClient("ws://gpu-machine:8000") as client:
    client.reset(0, seed=1)
    actions = client.plan({0: observation})[0]  # [n, A], to execute before the next observation
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas.config import ProcessorConfig
from atlas.environments.environment import EnvironmentSpec
from atlas.errors import InputError, first_line
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.chunk_timeline import Blend, ChunkExecution, Execution, RunningChunk, usual_execute
from atlas.serving.protocols.client_layout import LAYOUTS, ClientLayout, to_message
from atlas.serving.served_policy import ClientEntry, ServedPolicy
from atlas.system.array_codec import pack, unpack
from atlas.system.safe_text import printable
from atlas.system.websocket_client import Peer, connect, import_websockets
from atlas.types import Observation

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

_SERVER = Peer(
    name="policy server",
    key_setting="--api-key-file",
    start="atlas serve --checkpoint DIR, with --protocol openpi",
    protocol="openpi's protocol",
    largest_answer=64 * 2**20,
)
_OWN_LAYOUT = "lerobot"
SCHEMES = ("ws://", "wss://")
OTHERS_IMAGE_SIZE = 224  # pixels, for servers that announce no size; openpi's policies take this size


class AtlasClient:
    """An actor on a policy server, with one connection for each of the episodes that run side by side.

    Atlas servers announce what they take. For other servers the caller must know the keys of their messages (`layout`),
    and their actions are assumed to mean what the environment's do (`spec`).
    """

    def __init__(
        self,
        url: str,
        execute: int | None = None,
        key: str | None = None,
        layout: ClientLayout | None = None,
        spec: EnvironmentSpec | None = None,
        image_size: int | None = None,
        timeout: float = 60.0,
        ensemble: float | None = None,
        delay_ms: float = 0.0,
        blend: Blend = None,
    ) -> None:
        """execute: how many actions of each answer are executed (None: half of the policy's chunk). image_size: pixels
        of the images that a server other than Atlas's is sent. timeout: seconds to connect, and to wait for an answer.
        ensemble, delay_ms, blend: how chunks are joined, as in a ChunkExecutor; with blend `guided` the server makes a
        chunk continue the rest of the previous one.

        Raises InputError where no server answers, where its answers cannot be understood, or where its chunks cannot be
        executed in this way.
        """
        import_websockets("A client of a policy server")
        if not url.startswith(SCHEMES):
            raise InputError(f"'{url}' is not the address of a policy server; such an address is ws://127.0.0.1:8000.")
        self._url, self._key, self._timeout = url, key, timeout
        self._open = ExitStack()
        self._connections: dict[int, ClientConnection] = {}
        self._seeds: dict[int, int] = {}
        self._executions: dict[int, ChunkExecution] = {}
        self._free: ClientConnection | None = None
        try:
            self._free, greeting = self._connect()  # the first episode's
            served = ServedPolicy.from_message(greeting)
            self._is_atlas, self._follows = served is not None, served is not None and served.follows
            if blend == "guided" and not self._follows:
                raise InputError(self._not_guided())
            self._layout = layout or self._known_layout()
            self._processor, sends = (
                (served.processor, served.sends) if served is not None else self._probe_other_server(spec, image_size)
            )
            most = min(sends, self._processor.action_horizon)
            if execute is not None and execute > most:
                raise InputError(f"The server at {url} sends {most} actions at a time; {execute} cannot be executed.")
            hz = self._processor.action_spec.control_hz
            validated = served.validated_execute if served is not None else None
            execute = execute or min(most, usual_execute(self._processor.action_horizon, hz, delay_ms, validated))
            self._how = Execution(most, hz, execute, ensemble, delay_ms, blend)
        except InputError:
            self.close()
            raise

    @property
    def processor(self) -> PolicyProcessor:
        """The served policy's processor, without its statistics."""
        return self._processor

    @property
    def execute(self) -> int:
        """The number of each answer's actions that are executed."""
        return self._how.execute

    @property
    def follows(self) -> bool:
        """See `FollowingActor`."""
        return self._follows

    def reset(self, episode: int, seed: int) -> None:
        """Begin an episode. An Atlas server learns of it with the next observation: openpi's protocol has no reset."""
        self._seeds[episode] = seed
        self._executions[episode] = ChunkExecution(self._how)

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Return for each episode the actions [n, A] to execute. All requests are sent before the first answer is read,
        so that the server can plan them together. Raises InputError where the server refuses."""
        running = {number: self._execution(number).running() for number in observations}
        return self.plan_following(observations, {number: rest for number, rest in running.items() if rest is not None})

    def plan_following(
        self, observations: Mapping[int, Observation], running: Mapping[int, RunningChunk]
    ) -> dict[int, np.ndarray]:
        """See `FollowingActor`."""
        connections = {
            number: self._ask(number, observation, running.get(number)) for number, observation in observations.items()
        }
        return {number: self._execution(number).taken(self._answer(each)) for number, each in connections.items()}

    def close(self) -> None:
        """End all connections."""
        self._open.close()
        self._connections, self._free = {}, None

    def __enter__(self) -> AtlasClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- talking -----------------------------------------------------------------------------------------

    def _connect(self) -> tuple[ClientConnection, Any]:
        """A connection, and the server's first message."""
        connection = connect(self._url, _SERVER, self._key, self._timeout, self._open)
        return connection, self._received(connection)

    def _received(self, connection: ClientConnection) -> Any:
        from websockets.exceptions import ConnectionClosed

        try:
            frame = connection.recv(self._timeout)
        except TimeoutError:
            raise InputError(
                f"The server at {self._url} has sent nothing for {self._timeout:g} seconds; does it speak openpi's "
                "protocol? An Atlas server does with --protocol openpi."
            ) from None
        except ConnectionClosed as error:
            raise InputError(f"The server at {self._url} has closed the connection ({first_line(error)}).") from None
        if isinstance(frame, str):
            raise InputError(f"The server at {self._url} answers: {printable(frame[-2000:].strip())}")
        return unpack(frame)

    def _execution(self, number: int) -> ChunkExecution:
        return self._executions.setdefault(number, ChunkExecution(self._how))

    def _ask(self, number: int, observation: Observation, running: RunningChunk | None) -> ClientConnection:
        if number not in self._connections:
            connection, self._free = self._free or self._connect()[0], None
            self._connections[number] = connection
        connection = self._connections[number]
        message = to_message(self._with_used_cameras(observation), self._layout)
        if self._is_atlas:
            message |= ClientEntry(self._seeds.pop(number, None), running).to_message()
        self._send(connection, message)
        return connection

    @staticmethod
    def _send(connection: ClientConnection, message: Mapping[str, Any]) -> None:
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):  # reading the answer says why
            connection.send(pack(message))

    def _with_used_cameras(self, observation: Observation) -> Observation:
        """The observation without the cameras that the policy does not use."""
        missing = [camera for camera in self._processor.cameras if camera not in observation.images]
        if missing:
            raise InputError(
                f"The policy at {self._url} needs the cameras {list(self._processor.cameras)}; the observation lacks "
                f"{missing} and has {list(observation.images)}."
            )
        images = {camera: observation.images[camera] for camera in self._processor.cameras}
        past = tuple(self._with_used_cameras(each) for each in observation.past)
        return Observation(images, observation.proprio, observation.instruction, past)

    def _answer(self, connection: ClientConnection) -> np.ndarray:
        """The actions of an answer, float32 [n, A]."""
        answer = self._received(connection)
        actions = answer.get("actions") if isinstance(answer, Mapping) else None
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind not in "fiu":
            raise InputError(f"The server at {self._url} sends an answer without 'actions' [n, A].")
        width = self._processor.action_spec.dim
        if actions.shape[1] != width or not len(actions) or not np.isfinite(actions).all():
            raise InputError(
                f"The server at {self._url} sends actions {list(actions.shape)}; each should be {width} finite numbers."
            )
        return actions.astype(np.float32)

    def _not_guided(self) -> str:
        why = "serves a policy that does not make actions from noise" if self._is_atlas else "is not an Atlas server"
        return (
            "blend is guided, for which the server makes a chunk continue the rest of the previous one; the server at "
            f"{self._url} {why}, and cannot. Give a weight instead, such as 0.3."
        )

    # ---- servers of others -------------------------------------------------------------------------------

    def _known_layout(self) -> ClientLayout:
        if not self._is_atlas:
            raise InputError(
                f"The server at {self._url} is not an Atlas server and does not announce what it takes: give --layout "
                f"{' or '.join(name for name in LAYOUTS)}, or a YAML file."
            )
        return LAYOUTS[_OWN_LAYOUT]

    def _probe_other_server(self, spec: EnvironmentSpec | None, image_size: int | None) -> tuple[PolicyProcessor, int]:
        """The processor for a server that announces nothing, and the length of its chunks, found by asking it once
        about black images."""
        if spec is None:
            raise InputError(
                f"The server at {self._url} does not announce what its actions mean; name the environment."
            )
        cameras = tuple(camera for camera in spec.cameras if self._layout.camera_key(camera) is not None)
        if not cameras:
            raise InputError(
                f"The layout has no key for any of the cameras {', '.join(spec.cameras)} of '{spec.name}'."
            )
        size = image_size or OTHERS_IMAGE_SIZE
        self._processor = PolicyProcessor(
            cameras, size, size, 1, spec.proprio_dim, spec.action_spec, statistics=(), scaling=ProcessorConfig()
        )
        black = {camera: np.zeros((size, size, 3), np.uint8) for camera in cameras}
        observation = Observation(black, np.zeros(spec.proprio_dim, np.float32), spec.instructions[0])
        assert self._free is not None
        self._send(self._free, to_message(observation, self._layout))
        sends = len(self._answer(self._free))
        return PolicyProcessor(
            cameras, size, size, sends, spec.proprio_dim, spec.action_spec, statistics=(), scaling=ProcessorConfig()
        ), sends
