"""Chunks that come late and overlap: which action is for which step.

A robot does not stand still while its policy thinks: it goes on with the last chunk, and when the next one is there,
its first actions are for steps that are over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from atlas.errors import InputError

Blend = float | Literal["guided"] | None  # see EvaluationConfig


def delay_steps(delay_ms: float, control_hz: float) -> int:
    """The control steps that pass until an answer that takes so long is there."""
    return math.ceil(delay_ms * control_hz / 1000 - 1e-9)


def check_execution(
    horizon: int,
    control_hz: float,
    execute: int,
    ensemble: float | None,
    delay_ms: float,
    blend: Blend,
) -> None:
    """Raises InputError where chunks of so many actions cannot be executed so."""
    if not 1 <= execute <= horizon:
        raise InputError(f"The number of executed actions must be from 1 to {horizon} (the chunk), got {execute}.")
    if ensemble is not None and ensemble < 0:
        raise InputError(f"The ensemble's weight must not be negative, got {ensemble}.")
    if delay_ms < 0 or (isinstance(blend, float | int) and not 0 <= blend < 1):
        raise InputError(f"A delay must not be negative, and blend be from 0 to below 1; got {delay_ms} ms, {blend}.")
    if ensemble is not None and (delay_ms or blend is not None):
        raise InputError("ensemble asks the policy at every step; leave it out with delay_ms and blend.")
    late = delay_steps(delay_ms, control_hz)
    if late > min(execute, horizon - execute):
        raise InputError(
            f"A delay of {delay_ms:g} ms is {late} steps at {control_hz:g} Hz. While an answer is on its way the last "
            f"chunk must go on: execute at least {late} actions of it and leave as many; of {horizon}, {execute} are "
            f"executed. A longer chunk (data.action_horizon) bears a longer delay."
        )


class ChunkTimeline:
    """The actions that are planned, by the step they are for."""

    def __init__(self, blend: float = 0.0) -> None:
        """blend: the older chunk's weight in steps that two chunks reach (LeRobot's robot client has 0.3)."""
        self._blend = blend
        self._first = 0
        self._actions: np.ndarray | None = None

    @property
    def end(self) -> int:
        """One past the last step that is planned."""
        return self._first + (0 if self._actions is None else len(self._actions))

    def add(self, chunk: np.ndarray, start: int, now: int) -> None:
        """Plan by a chunk [H, A] whose first action is for the step `start`, and which is there at the step `now`."""
        new = chunk[now - start :]
        old = self.take(now, self.end - now)
        if old is not None and len(old):
            both = min(len(old), len(new))
            joined = self._blend * old[:both] + (1 - self._blend) * new[:both]
            new = np.concatenate([joined, new[both:], old[both:]]).astype(np.float32)
        self._first, self._actions = now, new

    def take(self, step: int, count: int) -> np.ndarray | None:
        """The actions [n, A] for so many steps from `step` on, as far as they are planned; None before any was."""
        if self._actions is None:
            return None
        begin = max(0, step - self._first)
        return self._actions[begin : max(begin, step - self._first + count)]


@dataclass(frozen=True)
class RunningChunk:
    """What is still to be executed of the chunks before, while the next one is made."""

    rest: np.ndarray  # float32 [R, A], from the present step on, in the ActionSpec's units
    delay: int  # control steps until the next chunk is there


@dataclass(frozen=True)
class Execution:
    """How chunks of `horizon` actions are executed; the same for a policy of this process and for one on a server.

    Raises InputError where they cannot be executed so, see `check_execution`.
    """

    horizon: int
    control_hz: float
    execute: int
    ensemble: float | None = None
    delay_ms: float = 0.0
    blend: Blend = None

    def __post_init__(self) -> None:
        check_execution(self.horizon, self.control_hz, self.execute, self.ensemble, self.delay_ms, self.blend)

    @property
    def delay(self) -> int:
        """In control steps."""
        return delay_steps(self.delay_ms, self.control_hz)


class ChunkExecution:
    """The chunks of one episode, and what is executed of them."""

    def __init__(self, how: Execution) -> None:
        self._how = how
        self._chunks: list[np.ndarray] = []  # those that reach the present, oldest first; to average
        self._step = 0  # so many are executed once what was planned is over
        self._timeline = ChunkTimeline(0.0 if how.blend in (None, "guided") else float(how.blend))

    def running(self) -> RunningChunk | None:
        """What the next chunk is to go on from; None where it is not guided, or where nothing is left."""
        rest = self._timeline.take(self._step, self._how.horizon) if self._how.blend == "guided" else None
        return None if rest is None or not len(rest) else RunningChunk(rest, self._how.delay)

    def taken(self, chunk: np.ndarray) -> np.ndarray:
        """Of the chunk [H, A] about the present step what is executed until the next one is asked for, [n, A]."""
        how = self._how
        if how.ensemble is not None:
            return self._averaged(chunk, how.ensemble)
        if not how.delay and how.blend is None:
            return chunk[: how.execute]
        now, timeline = self._step, self._timeline
        before = timeline.take(now, how.delay)
        late = 0 if before is None else len(before)  # the first chunk is waited for
        timeline.add(chunk, now, now + late)
        after = timeline.take(now + late, how.execute - late)
        self._step += how.execute
        return np.concatenate([part for part in (before, after) if part is not None])

    def _averaged(self, chunk: np.ndarray, ensemble: float) -> np.ndarray:
        history = self._chunks = [*self._chunks, chunk][-len(chunk) :]
        # The chunk made `age` steps ago says with its entry `age` what to do now.
        opinions = np.stack([old[age] for age, old in zip(range(len(history) - 1, -1, -1), history, strict=True)])
        weights = np.exp(-ensemble * np.arange(len(opinions)))
        return np.asarray((opinions * weights[:, None]).sum(0) / weights.sum(), np.float32)[None]
