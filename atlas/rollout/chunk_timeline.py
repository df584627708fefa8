"""Chunks that arrive late and overlap: which action is executed at which step.

A robot does not stand still while its policy computes: it goes on with the previous chunk, and when the next chunk
arrives, its first actions are for steps that have passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from atlas.config.training_sections import three_quarters
from atlas.errors import InputError

Blend = float | Literal["guided"] | None  # see EvaluationConfig


def delay_steps(delay_ms: float, control_hz: float) -> int:
    """The number of control steps that pass during this delay."""
    return math.ceil(delay_ms * control_hz / 1000 - 1e-9)


def usual_execute(horizon: int, control_hz: float, delay_ms: float, validated: int | None = None) -> int:
    """How many actions of a chunk are executed unless something else is asked for.

    validated: how many were where the policy was validated; None: unknown, three quarters of the chunk. Never so many
    that a chunk that comes late finds nothing left of the previous one.
    """
    return max(1, min(validated or three_quarters(horizon), horizon - delay_steps(delay_ms, control_hz)))


def check_execution(
    horizon: int,
    control_hz: float,
    execute: int,
    ensemble: float | None,
    delay_ms: float,
    blend: Blend,
) -> None:
    """Raise InputError where chunks of `horizon` actions cannot be executed with these settings."""
    if not 1 <= execute <= horizon:
        raise InputError(f"The number of executed actions must be from 1 to {horizon} (the chunk), got {execute}.")
    if ensemble is not None and ensemble < 0:
        raise InputError(f"The ensemble's weight must not be negative, got {ensemble}.")
    if delay_ms < 0 or (isinstance(blend, float | int) and not 0 <= blend < 1):
        raise InputError(
            f"delay_ms must not be negative, and blend must be from 0 to below 1; got {delay_ms} ms and {blend}."
        )
    if ensemble is not None and (delay_ms or blend is not None):
        raise InputError("ensemble asks the policy at every step; leave it out with delay_ms and blend.")
    late = delay_steps(delay_ms, control_hz)
    if late > min(execute, horizon - execute):
        raise InputError(
            f"A delay of {delay_ms:g} ms is {late} steps at {control_hz:g} Hz, during which the previous chunk must go "
            f"on: execute at least {late} of its actions, and leave at least as many; of {horizon}, {execute} are "
            f"executed. A longer chunk (data.action_horizon) allows a longer delay."
        )


class ChunkTimeline:
    """The planned actions, by their steps."""

    def __init__(self, blend: float = 0.0) -> None:
        """blend: the older chunk's weight at steps that two chunks cover (0.3 in LeRobot's robot client)."""
        self._blend = blend
        self._first = 0
        self._actions: np.ndarray | None = None

    @property
    def end(self) -> int:
        """One past the last planned step."""
        return self._first + (0 if self._actions is None else len(self._actions))

    def add(self, chunk: np.ndarray, start: int, now: int) -> None:
        """Add a chunk [H, A] whose first action is for the step `start`, and which arrives at the step `now`."""
        new = chunk[now - start :]
        old = self.take(now, self.end - now)
        if old is not None and len(old):
            both = min(len(old), len(new))
            joined = self._blend * old[:both] + (1 - self._blend) * new[:both]
            new = np.concatenate([joined, new[both:], old[both:]]).astype(np.float32)
        self._first, self._actions = now, new

    def take(self, step: int, count: int) -> np.ndarray | None:
        """The planned actions [n, A] of at most `count` steps from `step` on; None before the first chunk."""
        if self._actions is None:
            return None
        begin = max(0, step - self._first)
        return self._actions[begin : max(begin, step - self._first + count)]


@dataclass(frozen=True)
class RunningChunk:
    """The unexecuted rest of the previous chunks while the next one is computed."""

    rest: np.ndarray  # float32 [R, A], from the current step on, in the ActionSpec's units
    delay: int  # control steps until the next chunk is there


@dataclass(frozen=True)
class Execution:
    """The way in which chunks of `horizon` actions are executed, for a policy in this process and for one on a server
    alike.

    Raises InputError, see `check_execution`.
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
        """The delay in control steps."""
        return delay_steps(self.delay_ms, self.control_hz)


class ChunkExecution:
    """The chunks of one episode, and the actions executed from them."""

    def __init__(self, how: Execution) -> None:
        self._how = how
        self._chunks: list[np.ndarray] = []  # those that cover the current step, oldest first, for averaging
        self._step = 0  # steps executed once the planned ones are over
        self._timeline = ChunkTimeline(0.0 if how.blend in (None, "guided") else float(how.blend))

    def running(self) -> RunningChunk | None:
        """The chunk that the next one should continue; None without guidance, or where no actions are left."""
        rest = self._timeline.take(self._step, self._how.horizon) if self._how.blend == "guided" else None
        return None if rest is None or not len(rest) else RunningChunk(rest, self._how.delay)

    def taken(self, chunk: np.ndarray) -> np.ndarray:
        """The actions [n, A] to execute until the next chunk is requested. chunk: [H, A], from the current step on."""
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
        # Entry `age` of the chunk made `age` steps ago is for the current step.
        actions = np.stack([old[age] for age, old in zip(range(len(history) - 1, -1, -1), history, strict=True)])
        weights = np.exp(-ensemble * np.arange(len(actions)))
        return np.asarray((actions * weights[:, None]).sum(0) / weights.sum(), np.float32)[None]
