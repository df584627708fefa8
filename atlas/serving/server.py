"""`atlas serve`: a saved policy behind a protocol, until it is told to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atlas.errors import InputError
from atlas.launch import acting_device
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.serving.access import Access, Limits
from atlas.serving.policy_service import PolicyFailure, PolicyService, ServedActor
from atlas.serving.protocols.client_layout import AUTO, ObservationReader, read_layout
from atlas.serving.protocols.groot_protocol import GrootProtocol
from atlas.serving.protocols.lerobot_protocol import LeRobotProtocol
from atlas.serving.protocols.openpi_protocol import OpenpiProtocol
from atlas.serving.protocols.vla_eval_protocol import VlaEvalProtocol
from atlas.system.process_control.stop_signals import StopSignals
from atlas.types import Observation

DEFAULT_PORTS = {"openpi": 8000, "groot": 5555, "vla-eval": 8000, "lerobot": 8080}


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server."""

    protocol: str = "openpi"
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    layout: str = AUTO  # of the clients' messages: a name, or a YAML file
    execute: int | None = None  # actions per answer; None: the whole chunk
    batch: int = 32  # how many sessions are planned together, at most
    batch_wait_ms: float = 2.0  # the longest that a request waits for others
    allow_kill: bool = False  # whether a client that speaks GR00T's protocol may end the server
    name: str = "policy"  # by which LeRobot's clients ask for the policy


def load_actor(checkpoint: str | Path, settings: ServerSettings, environment: str | None = None) -> ChunkExecutor:
    """An actor for a saved policy, on the GPU where there is one. Raises InputError."""
    from atlas.policies.base import load_policy

    device = acting_device()
    policy = load_policy(checkpoint, device=device)
    execute = settings.execute or policy.processor.action_horizon
    return ChunkExecutor(policy, execute, environment=environment, together=True)


@asynccontextmanager
async def serving(
    actor: ServedActor, settings: ServerSettings, on_kill: Callable[[], object] = lambda: None
) -> AsyncIterator[int]:
    """Serve an actor while the context lasts; yields the port. Raises InputError for settings that do not fit it."""
    processor = actor.processor
    reader = ObservationReader(
        processor.cameras, processor.proprio_dim, read_layout(settings.layout), processor.history
    )
    sends = settings.execute or processor.action_horizon
    settings.access.warn()
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(
            PolicyService(actor, settings.batch, settings.batch_wait_ms, settings.limits.sessions)
        )
        listening = await _protocol(service, reader, sends, settings, on_kill).listen(settings.access)
        stack.push_async_callback(listening.stop)
        await warm_up(service, processor)
        yield listening.port


def _protocol(
    service: PolicyService,
    reader: ObservationReader,
    sends: int,
    settings: ServerSettings,
    on_kill: Callable[[], object],
) -> OpenpiProtocol | GrootProtocol | VlaEvalProtocol | LeRobotProtocol:
    limits = settings.limits
    if settings.protocol == "groot":
        return GrootProtocol(service, reader, sends, limits, on_kill if settings.allow_kill else None)
    if settings.protocol == "lerobot":
        return LeRobotProtocol(service, reader, settings.name, limits)
    if settings.protocol == "vla-eval":
        return VlaEvalProtocol(service, reader, limits)
    return OpenpiProtocol(service, reader, sends, limits)


async def warm_up(service: PolicyService, processor: PolicyProcessor) -> None:
    """Ask the policy once about black images, so that the first client does not wait for one-time work.

    Raises InputError where the policy fails even on these.
    """
    size = processor.camera_size
    black = {camera: np.zeros((size, size, 3), np.uint8) for camera in processor.cameras}
    session = service.open()
    try:
        still = Observation(black, np.zeros(processor.proprio_dim, np.float32), "stand still")
        await service.act(session, processor.history.of([still]))
    except PolicyFailure as error:
        raise InputError(f"The policy cannot be served: {error}.") from error
    finally:
        service.close(session)


async def serve_until_stopped(actor: ServedActor, settings: ServerSettings, on_ready: Callable[[int], object]) -> int:
    """Serve until SIGINT or SIGTERM arrives, and return its number. on_ready: called with the port."""
    signals = StopSignals()
    async with serving(actor, settings, on_kill=signals.stop) as port:
        on_ready(port)
        return await signals.wait()


@contextmanager
def serving_in_a_thread(actor: ServedActor, settings: ServerSettings) -> Iterator[int]:
    """`serving` in a thread of this process, for clients in the same process; yields the port."""
    ready: threading.Event = threading.Event()
    started: dict[str, Any] = {}

    async def serve() -> None:
        async with serving(actor, settings) as port:
            started.update(port=port, loop=asyncio.get_running_loop(), stop=asyncio.Event())
            ready.set()
            await started["stop"].wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            started["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    ready.wait()
    try:
        if "error" in started:
            raise started["error"]
        yield started["port"]
    finally:
        if "loop" in started:
            started["loop"].call_soon_threadsafe(started["stop"].set)
        thread.join()
