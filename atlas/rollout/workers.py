"""Environments in separate processes, so that several episodes run at once."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from atlas.data.episode import RecordedEpisode
from atlas.data.sampling.history import ONE_FRAME, History
from atlas.environments.catalog import find_expert, make_environment
from atlas.environments.environment import Environment
from atlas.environments.remote.remote_world import WorldLost
from atlas.environments.rendering import RenderingGPU, render_on, software_renderer, tell_of_software
from atlas.errors import InputError
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.episode_player import EpisodePlayer, Segment
from atlas.rollout.experience import Played, as_recorded
from atlas.rollout.traces import Film, make_film
from atlas.system.process_control.pool import worker_start

LOST = 75  # the exit code of a worker that lost the connection to its remote world


class WorkerDied(RuntimeError):
    """A worker's process has ended, for example for lack of memory; `EnvironmentPool.restart` starts another."""

    def __init__(self, worker: int, exit_code: int | None) -> None:
        super().__init__(f"an environment process ended unexpectedly (exit code {exit_code})")
        self.worker, self.exit_code = worker, exit_code


class EnvironmentPool:
    """Worker processes, each with an environment that plays one episode at a time.

    Use as a context manager or call `close`. Raises InputError where an environment cannot be made or cannot begin an
    episode, RuntimeError with the worker's traceback where one fails, and WorkerDied where one ends without a message.
    """

    def __init__(self, name: str, image_size: int, size: int, gpu: RenderingGPU | None = None) -> None:
        """gpu: on which the environments render; None leaves the choice to the simulator."""
        self._made_with = name, image_size, gpu
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self.grow(size)

    def grow(self, size: int) -> None:
        """Start workers until there are `size`."""
        with worker_start():
            for _ in range(len(self), size):
                connection, process = self._start()
                self._connections.append(connection)
                self._processes.append(process)

    def restart(self, worker: int) -> None:
        """Replace a process that has died; its work is lost."""
        self._connections[worker].close()
        self._processes[worker].join(timeout=10)
        with worker_start():
            self._connections[worker], self._processes[worker] = self._start()

    def _start(self) -> tuple[Connection, Any]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._made_with), daemon=True)
        process.start()
        theirs.close()
        return ours, process

    def __len__(self) -> int:
        return len(self._connections)

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(
        self,
        worker: int,
        episode: PlannedEpisode,
        record: bool = False,
        transitions: bool = False,
        history: History = ONE_FRAME,
        intermediate: bool = False,
    ) -> None:
        """Begin an episode on a worker, see EpisodePlayer; the answer comes through `ready`."""
        self._send(worker, ("begin", episode, record, transitions, history, intermediate))

    def run(self, worker: int, actions: np.ndarray) -> None:
        """Execute actions [n, A] on a worker until the episode ends; the answer comes through `ready`."""
        self._send(worker, ("run", actions))

    def hand_over(self, worker: int) -> None:
        """Let the world's expert act on a worker until the episode ends; the answer comes through `ready`."""
        self._send(worker, ("hand over",))

    def film(self, worker: int, order: Film) -> None:
        """Make a film on a worker, between its episodes; the answer comes through `filmed`."""
        self._send(worker, ("film", order))

    def ready(self) -> dict[int, Segment]:
        """Wait for at least one worker's answer to `begin`, `run` or `hand_over`; returns all that have arrived."""
        return self._answers()

    def answers(self) -> dict[int, Segment | RecordedEpisode]:
        """Wait for at least one worker's answer to anything but `film`."""
        return self._answers()

    def record(self, worker: int, played: Played) -> None:
        """Render a finished episode's observations on a worker, between its episodes; see `recorded`."""
        self._send(worker, ("record", played))

    def recorded(self) -> dict[int, RecordedEpisode]:
        """Wait for at least one worker's answer to `record`."""
        return self._answers()

    def filmed(self) -> dict[int, str | None]:
        """Wait for at least one worker's answer to `film`: None, or why the film could not be made."""
        return self._answers()

    def _send(self, worker: int, message: tuple[Any, ...]) -> None:
        # If the worker has ended, reading its next answer says so.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connections[worker].send(message)

    def _answers(self) -> dict[int, Any]:
        done = wait(self._connections)
        answers: dict[int, Any] = {}
        died: WorkerDied | None = None
        for worker, connection in enumerate(self._connections):
            if connection in done:
                try:
                    kind, value = connection.recv()
                    if kind == "in software":  # ahead of its first answer
                        tell_of_software(self._made_with[0], value)
                        kind, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    self._processes[worker].join(timeout=10)  # or its exit code is not known yet
                    died = WorkerDied(worker, self._processes[worker].exitcode)
                    continue
                if kind == "input error":
                    raise InputError(value)
                if kind == "error":
                    raise RuntimeError(f"an environment process failed:\n{value}")
                answers[worker] = value
        if died is not None and not answers:  # other workers' answers come first; the next call finds this end again
            raise died
        return answers

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
        self._connections, self._processes = [], []


def _serve(connection: Connection, name: str, image_size: int, gpu: RenderingGPU | None) -> None:
    """The worker's main function: make the environment, then answer until the other end closes."""
    os.setpgrp()  # signals to the parent's group are the parent's to handle; a closed connection ends this process
    render_on(gpu)
    try:
        env = make_environment(name, image_size)
    except InputError as error:
        connection.send(("input error", str(error)))
        return
    player: EpisodePlayer | None = None
    try:
        while True:
            kind, *arguments = connection.recv()
            if kind == "begin":
                begun, player = player, EpisodePlayer(env, *arguments)
                answer: Any = player.begin()
                if begun is None and (renderer := software_renderer()) is not None:
                    connection.send(("in software", renderer))
            elif kind == "run":
                assert player is not None
                answer = player.run(*arguments)
            elif kind == "hand over":
                expert = find_expert(name)
                assert player is not None and expert is not None
                answer = player.hand_over(expert(env))
            elif kind == "record":
                answer = as_recorded(env, arguments[0])
            else:
                answer = _film(env, arguments[0])
            connection.send(("answer", answer))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the other end is closed: the work is done
    except InputError as error:
        connection.send(("input error", str(error)))
    except WorldLost:
        connection.close()  # the episode begins again in another process
        os._exit(LOST)
    except Exception:
        connection.send(("error", traceback.format_exc()))
    finally:
        env.close()


def _film(env: Environment, order: Film) -> str | None:
    try:
        make_film(env, order)
    except Exception as error:  # such as a full disk or a missing codec, which must not end the evaluation
        return f"{type(error).__name__}: {error}"
    return None
