"""A world served over a websocket: `atlas environment serve`. See atlas/environments/remote/remote_messages.py.

Each connection has its own process with its own world, which ends with the connection: worlds render and simulate side
by side, and a world that crashes takes nothing else with it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas.environments.catalog import make_environment
from atlas.environments.environment import (
    Environment,
    FeelsContacts,
    NamesTarget,
    NamesTaskThings,
    Pictured,
    Simulator,
)
from atlas.environments.remote.remote_messages import observation_to_message, result_to_message, spec_to_message
from atlas.environments.rendering import RenderingGPU, render_on, software_renderer, tell_of_software
from atlas.errors import InputError
from atlas.serving.access import Access, Limits
from atlas.serving.protocols.websocket_server import close_with_error, listen, receive, send
from atlas.system.array_codec import pack, unpack
from atlas.system.process_control.pool import worker_start
from atlas.system.process_control.stop_signals import StopSignals

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

logger = logging.getLogger(__name__)

_SIZES = range(8, 4097)  # of images, in pixels
_END_SECONDS = 10


@asynccontextmanager
async def serving_worlds(env: str, access: Access, limits: Limits) -> AsyncIterator[int]:
    """Serve worlds while the context lasts; yields the port. Raises InputError where it cannot listen there."""
    connected: set[Any] = set()

    async def talk(connection: ServerConnection) -> None:
        connected.add(connection)
        try:
            await _talk(connection, env, limits)
        finally:
            connected.discard(connection)

    listening = await listen(talk, access, limits, lambda: len(connected) >= limits.sessions)
    try:
        yield listening.port
    finally:
        await listening.stop()


async def serve_worlds_until_stopped(
    env: str, access: Access, limits: Limits, on_ready: Callable[[int], object]
) -> int:
    """Serve until SIGINT or SIGTERM arrives, and return its number. on_ready: called with the port."""
    access.warn()
    signals = StopSignals()
    async with serving_worlds(env, access, limits) as port:
        on_ready(port)
        return await signals.wait()


async def _talk(connection: ServerConnection, env: str, limits: Limits) -> None:
    ours, process = await asyncio.to_thread(_start, env)
    try:
        while (frame := await receive(connection, limits)) is not None:
            try:
                if isinstance(frame, str):
                    raise InputError("A message to a world is a binary frame of msgpack, not text.")
                message = unpack(frame)
            except InputError as error:
                await close_with_error(connection, str(error), limits)
                return
            try:
                answer = await asyncio.to_thread(_through, ours, message, env)
            except (EOFError, OSError):
                process.join(_END_SECONDS)
                logger.warning("the process of a world has ended (exit code %s)", process.exitcode)
                await close_with_error(connection, f"the world has ended (exit code {process.exitcode})", limits)
                return
            if not await send(connection, answer, limits):
                return
    finally:
        ours.close()
        await asyncio.to_thread(_end, process)


def _start(env: str) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with worker_start():
        process = context.Process(target=_live, args=(theirs, env), name="world", daemon=True)
        process.start()
    theirs.close()
    return ours, process


def _through(pipe: Connection, message: Any, env: str) -> bytes:
    pipe.send(message)
    if (renderer := pipe.recv()) is not None:
        tell_of_software(env, renderer)
    answer: bytes = pipe.recv_bytes()
    return answer


def _end(process: Any) -> None:
    process.join(_END_SECONDS)
    if process.is_alive():
        process.terminate()


# ---- in the process that has the world -------------------------------------------------------------------


def _live(pipe: Connection, name: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a closed pipe ends this process
    render_on(RenderingGPU.first_shown())
    world, reported = _World(name), False
    try:
        while True:
            answer = world.answer(pipe.recv())
            renderer = None if reported else software_renderer()  # reported once
            reported = reported or renderer is not None
            pipe.send(renderer)
            pipe.send_bytes(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        world.close()


class _World:
    """Answers messages with an environment."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._env: Environment | None = None

    def answer(self, message: Any) -> bytes:
        """The frame to send back for any message."""
        try:
            return pack({"value": self._do(message)})
        except InputError as error:
            return pack({"error": str(error), "input": True})
        except Exception:  # a world may raise anything; its client gets an answer
            return pack({"error": traceback.format_exc(), "input": False})

    def close(self) -> None:
        if self._env is not None:
            with suppress(Exception):
                self._env.close()

    def _do(self, message: Any) -> Any:
        what = message.get("do") if isinstance(message, Mapping) else None
        if what == "start":
            size = message.get("image_size")
            if not isinstance(size, int) or size not in _SIZES:
                raise InputError(f"image_size is {size!r:.60}; it should be from {_SIZES.start} to {_SIZES.stop - 1}.")
            self.close()
            self._env = make_environment(self._name, size)
            return spec_to_message(
                self._env.spec, isinstance(self._env, Simulator), isinstance(self._env, FeelsContacts)
            )
        env = self._env
        if env is None:
            raise InputError("The first message to a world is 'start', with image_size.")
        if what == "reset":
            return observation_to_message(self._reset(env, message))
        if what == "step":
            return result_to_message(env.step(self._numbers(message, "action"), bool(message.get("observe", True))))
        if what == "picture":
            return env.picture(int(message["size"])) if isinstance(env, Pictured | Simulator) else None
        if isinstance(env, Simulator):
            if what == "observe":
                return observation_to_message(env.observe())
            if what == "get_state":
                return env.get_state()
            if what == "set_state":
                return env.set_state(self._numbers(message, "state"))
            if what == "positions":
                return env.positions()
            if what == "contact_forces" and isinstance(env, FeelsContacts):
                return env.contact_forces()
            if what == "target_object":
                return env.target_object() if isinstance(env, NamesTarget) else None
            if what == "task_things":
                things = env.task_things() if isinstance(env, NamesTaskThings) else None
                return None if things is None else sorted(things)
        raise InputError(f"This world cannot do {what!r:.60}.")

    def _reset(self, env: Environment, message: Mapping[str, Any]) -> Any:
        how = {key: message[key] for key in ("seed", "instruction") if message.get(key) is not None}
        if message.get("init_state") is None:
            return env.reset(**how)
        if not isinstance(env, Simulator):
            raise InputError(f"'{self._name}' is not a simulator: it cannot be put into a recorded state.")
        return env.reset(init_state=self._numbers(message, "init_state"), **how)

    @staticmethod
    def _numbers(message: Mapping[str, Any], key: str) -> np.ndarray:
        value = message.get(key)
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "fiu":
            raise InputError(f"'{key}' should be an array of numbers [n].")
        if not np.isfinite(value).all():
            raise InputError(f"'{key}' holds numbers that are not finite.")
        return np.array(value, np.float64)
