"""`atlas bench-serve`: how long a policy server takes, and how many clients it can answer."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from atlas.errors import InputError
from atlas.serving.access import Access
from atlas.serving.protocols.client_layout import LAYOUTS, to_message
from atlas.serving.server import ServerSettings, load_actor, serve_until_stopped
from atlas.system.array_codec import pack, unpack
from atlas.system.process_control.pool import worker_start
from atlas.types import Observation

_START_SECONDS = 300.0
_WARM_SECONDS = 0.5


@dataclass(frozen=True)
class Load:
    """Measurements of a number of clients that each ask again as soon as they have an answer."""

    clients: int
    batch: int  # how many sessions the server plans together, at most
    requests: int
    seconds: float
    p50_ms: float  # from sending an observation to having its actions
    p99_ms: float
    infer_p50_ms: float  # the policy's part of it, fitting the images included
    overhead_p50_ms: float  # the rest
    together: float  # sessions that were planned together, on average

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def to_dict(self) -> dict[str, float]:
        """The machine-readable form."""
        return {**vars(self), "per_second": self.per_second}


def bench(
    checkpoint: str, settings: ServerSettings, clients: Sequence[int], seconds: float, image_size: int
) -> list[Load]:
    """Start a server in another process and measure it with each number of clients; then, for comparison, measure 16
    clients with batches and without. image_size: pixels of the images that are sent. Raises InputError where the policy
    cannot be served."""
    loads = []
    sessions = max(*clients, 16) + 1
    plenty = replace(settings, access=Access(port=0), limits=replace(settings.limits, sessions=sessions))
    with server_process(checkpoint, plenty) as (port, cameras, proprio_dim):
        frame = made_up_message(cameras, proprio_dim, image_size)
        for number in dict.fromkeys([*clients, 16]):
            loads.append(asyncio.run(measure_load(port, frame, number, seconds, settings.batch)))
    with server_process(checkpoint, replace(plenty, batch=1)) as (port, cameras, proprio_dim):
        loads.append(asyncio.run(measure_load(port, frame, 16, seconds, 1)))
    return loads


@contextmanager
def server_process(checkpoint: str, settings: ServerSettings) -> Iterator[tuple[int, tuple[str, ...], int]]:
    """A server in a process of its own; yields its port, and its policy's cameras and number of proprio values."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with worker_start():
        process = context.Process(target=_serve, args=(theirs, checkpoint, settings), daemon=True)
        process.start()
    theirs.close()
    try:
        if not ours.poll(_START_SECONDS):
            raise InputError(f"The server has not started within {_START_SECONDS:g} seconds.")
        started = ours.recv()
        if isinstance(started, str):
            raise InputError(started)
        yield started
    except EOFError:
        raise RuntimeError("the server's process ended unexpectedly") from None
    finally:
        process.terminate()
        process.join(10)
        if process.is_alive():
            process.kill()
        ours.close()


def _serve(connection: Connection, checkpoint: str, settings: ServerSettings) -> None:
    try:
        actor = load_actor(checkpoint, settings)
        processor = actor.processor
        asyncio.run(
            serve_until_stopped(
                actor, settings, lambda port: connection.send((port, processor.cameras, processor.proprio_dim))
            )
        )
    except InputError as error:
        connection.send(str(error))


def made_up_message(cameras: Sequence[str], proprio_dim: int, size: int) -> bytes:
    """A packed observation with images of noise."""
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 255, (size, size, 3), dtype=np.uint8) for camera in cameras}
    return pack(to_message(Observation(images, np.zeros(proprio_dim, np.float32), "go"), LAYOUTS["lerobot"]))


async def measure_load(port: int, frame: bytes, clients: int, seconds: float, batch: int) -> Load:
    """Measure clients that run at once, each asking again as soon as it has an answer."""
    from websockets.asyncio.client import connect

    measured: list[tuple[float, float, float]] = []  # per request: its ms, the policy's ms, sessions planned together
    begin = time.perf_counter() + _WARM_SECONDS
    end = begin + seconds

    async def ask_on_and_on() -> None:
        async with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as connection:
            await connection.recv()
            while (asked := time.perf_counter()) < end:
                await connection.send(frame)
                answer = await connection.recv()
                took = time.perf_counter() - asked
                if isinstance(answer, str):
                    raise InputError(f"The server answered: {answer}")
                times: Any = unpack(answer)
                if asked >= begin:
                    infer, together = times["policy_timing"]["infer_ms"], times["server_timing"]["batch"]
                    measured.append((1000 * took, infer, together))

    await asyncio.gather(*(ask_on_and_on() for _ in range(clients)))
    if not measured:
        raise InputError(f"No request of {clients} clients was answered within {seconds:g} seconds; give more seconds.")
    numbers = np.array(measured)
    p50, p99 = np.percentile(numbers[:, 0], [50, 99]).tolist()
    return Load(
        clients,
        batch,
        len(numbers),
        seconds,
        p50,
        p99,
        float(np.median(numbers[:, 1])),
        float(np.median(numbers[:, 0] - numbers[:, 1])),
        float(1 / np.mean(1 / numbers[:, 2])),
    )
