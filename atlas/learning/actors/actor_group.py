"""Starts a learner's actors: processes on this machine, or Ray tasks, with the same limits for both."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod

from atlas.learning.actors.messages import Address

MOST_RESTARTS = 5  # per actor
PATIENCE = 20.0  # seconds that actors have to end by themselves when the run is over
EVERY = 1.0  # seconds between checks that all are alive


class ActorGroup(ABC):
    """Starts actors and ends them. Use as a context manager."""

    def __init__(self) -> None:
        self.key, self.address = secrets.token_hex(32), Address("127.0.0.1", 0)  # the learner's
        self._looked = time.monotonic()

    @abstractmethod
    def __enter__(self) -> ActorGroup: ...

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    @abstractmethod
    def start(self, port: int) -> None:
        """Start all actors, once the learner listens on the port."""

    def look(self) -> None:
        """Check, at most every second, for actors that ended before the run. Raises InputError if an actor's input is
        wrong, RuntimeError if one keeps dying."""
        if time.monotonic() - self._looked < EVERY:
            return
        self._looked = time.monotonic()
        self._look_after()

    @abstractmethod
    def _look_after(self) -> None:
        """See `look`."""


def died_again(why: object) -> RuntimeError:
    """The error for an actor that died after its last allowed restart."""
    return RuntimeError(f"An actor has ended {MOST_RESTARTS + 1} times: {why}")


def patience(kind: type[BaseException] | None) -> float:
    """Seconds that actors have to end by themselves; 0 if an error (`kind`) ended the run."""
    return PATIENCE if kind is None else 0.0
