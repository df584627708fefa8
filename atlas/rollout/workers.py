"""Environments in processes of their own, so that several episodes run at once."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from atlas.environments.base import Environment
from atlas.environments.catalog import make_environment
from atlas.environments.rendering import RenderingGPU, render_on
from atlas.errors import InputError
from atlas.rollout.traces import FilmOrder, Trace, TraceRecorder, make_film
from atlas.system.pool import worker_start
from atlas.types import Observation


@dataclass
class Segment:
    """What a worker reports after a reset or after some actions."""

    observation: Observation | None  # None when the episode is over
    reward: float  # of these steps, summed
    steps: int
    done: bool
    success: bool
    trace: Trace | None = None  # of the whole episode, when it is over and was to be recorded


class EnvironmentPool:
    """Worker processes with an environment each; a worker is given to one episode at a time.

    Use as a context manager or call `close`. Raises InputError when an environment cannot be made, RuntimeError with
    the worker's own traceback when one fails.
    """

    def __init__(self, name: str, image_size: int, size: int, gpu: RenderingGPU | None = None) -> None:
        """gpu: what the environments render on; None leaves it to the simulator."""
        self._made_with = name, image_size, gpu
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self.grow(size)

    def grow(self, size: int) -> None:
        """Start as many workers as are missing."""
        context = multiprocessing.get_context("spawn")
        with worker_start():
            for _ in range(len(self), size):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, *self._made_with), daemon=True)
                process.start()
                theirs.close()
                self._connections.append(ours)
                self._processes.append(process)

    def __len__(self) -> int:
        return len(self._connections)

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, worker: int, seed: int, instruction: str, record: bool = False) -> None:
        """Begin an episode on a worker, which is to keep its trace or not; the answer comes through `ready`."""
        self._connections[worker].send(("reset", seed, instruction, record))

    def run(self, worker: int, actions: np.ndarray) -> None:
        """Execute actions [n, A] on a worker, until the episode ends; the answer comes through `ready`."""
        self._connections[worker].send(("run", actions))

    def film(self, worker: int, order: FilmOrder) -> None:
        """Make a film on a worker, between its episodes; the answer comes through `filmed`."""
        self._connections[worker].send(("film", order))

    def ready(self) -> dict[int, Segment]:
        """Wait for at least one worker's answer to `reset` or `run`; returns those that are there."""
        return self._answers()

    def filmed(self) -> dict[int, str | None]:
        """Wait for at least one worker's answer to `film`: None, or why the film could not be made."""
        return self._answers()

    def _answers(self) -> dict[int, Any]:
        done = wait(self._connections)
        answers = {}
        for worker, connection in enumerate(self._connections):
            if connection in done:
                try:
                    kind, value = connection.recv()
                except EOFError:
                    code = self._processes[worker].exitcode
                    raise RuntimeError(f"an environment process ended unexpectedly (exit code {code})") from None
                if kind == "input error":
                    raise InputError(value)
                if kind == "error":
                    raise RuntimeError(f"an environment process failed:\n{value}")
                answers[worker] = value
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
    """A worker's life: make the environment, then answer until the other end closes."""
    os.setpgrp()  # signals to the parent's group are the parent's to handle; a closed connection ends this process
    render_on(gpu)
    try:
        env = make_environment(name, image_size)
    except InputError as error:
        connection.send(("input error", str(error)))
        return
    recorder = None
    try:
        while True:
            kind, *arguments = connection.recv()
            if kind == "reset":
                seed, instruction, record = arguments
                observation = env.reset(seed=seed, instruction=instruction)
                recorder = TraceRecorder(env) if record else None
                answer: Any = Segment(observation, 0.0, 0, False, False)
            elif kind == "run":
                answer = _run(env, arguments[0], recorder)
            else:
                answer = _film(env, arguments[0])
            connection.send(("answer", answer))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the other end is closed: the work is done
    except Exception:
        connection.send(("error", traceback.format_exc()))
    finally:
        env.close()


def _run(env: Environment, actions: np.ndarray, recorder: TraceRecorder | None) -> Segment:
    reward = 0.0
    for number, action in enumerate(actions):
        result = env.step(action, observe=number == len(actions) - 1)
        reward += result.reward
        if recorder is not None:
            recorder.stepped(action)
        if result.done:
            trace = recorder.trace() if recorder is not None else None
            return Segment(None, reward, number + 1, True, result.success, trace)
    return Segment(result.observation, reward, len(actions), False, False)


def _film(env: Environment, order: FilmOrder) -> str | None:
    try:
        make_film(env, order)
    except Exception as error:  # a full disk, a codec: no reason to end the work that the film is of
        return f"{type(error).__name__}: {error}"
    return None
