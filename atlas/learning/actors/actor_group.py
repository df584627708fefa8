"""The starting of a learner's actors: processes on this machine, or tasks of Ray. Both have the same limits."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod

from atlas.learning.actors.messages import Address

MOST_RESTARTS = 5  # of each actor
PATIENCE = 20.0  # seconds in which actors end by themselves when the run is over
EVERY = 1.0  # seconds between looks at whether all are alive


class ActorGroup(ABC):
    """Starts actors and ends them. Use as a context manager."""

    def __init__(self) -> None:
        self.key, self.address = secrets.token_hex(32), Address("127.0.0.1", 0)  # of their learner
        self._looked = time.monotonic()

    @abstractmethod
    def __enter__(self) -> ActorGroup: ...

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    @abstractmethod
    def start(self, port: int) -> None:
        """All of them, once the learner listens."""

    def look(self) -> None:
        """Notice, at most every second, what has ended before the run. Raises InputError where an actor's input is
        wrong, RuntimeError where one goes on dying."""
        if time.monotonic() - self._looked < EVERY:
            return
        self._looked = time.monotonic()
        self._look_after()

    @abstractmethod
    def _look_after(self) -> None:
        """See `look`."""


def died_again(why: object) -> RuntimeError:
    """The error of an actor that was started again as often as is allowed."""
    return RuntimeError(f"An actor has ended {MOST_RESTARTS + 1} times: {why}")


def patience(kind: type[BaseException] | None) -> float:
    """Seconds in which actors end by themselves; none where an error of this kind ended the run."""
    return PATIENCE if kind is None else 0.0
