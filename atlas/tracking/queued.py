"""A sink on a thread of its own, so that a slow, hung or dying one costs the training thread nothing."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from atlas.tracking.records import Record, Sink
from atlas.tracking.redact import cause

logger = logging.getLogger(__name__)

_CAPACITY = 1000  # records that wait while a sink starts or stalls; then the newest are dropped
_POLL_SECONDS = 0.1
_LAST_WORDS_SECONDS = 1.0


class SlowSink(Sink, Protocol):
    """A sink whose `open`, `write` and `finish` may take long, hang, or raise: they run on the sink's thread."""

    def open(self) -> None: ...

    def prepare(self, record: Record) -> Record:
        """Called on the training thread, quickly: keep what may be gone when the record's turn comes."""
        ...

    def abandon(self) -> None:
        """Called on the training thread when time is up: make sure that nothing holds the exit of the process."""
        ...


@dataclass(frozen=True)
class _Finish:
    exit_code: int


class QueuedSink:
    """Feeds a SlowSink from a bounded queue on a daemon thread; full means the record is dropped and counted."""

    def __init__(self, sink: SlowSink, exit_timeout_seconds: float, capacity: int = _CAPACITY) -> None:
        self.name = sink.name
        self.dropped = 0
        self._sink = sink
        self._exit_timeout = exit_timeout_seconds
        self._off = threading.Event()
        self._queue: queue.Queue[Record | _Finish] = queue.Queue(maxsize=capacity)
        self._thread = threading.Thread(target=self._work, name=f"atlas-{sink.name}", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        if self._off.is_set():
            return
        try:
            self._queue.put_nowait(self._sink.prepare(record))
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                logger.warning("%s falls behind: what it has no room for is dropped, and counted.", self.name)

    def finish(self, exit_code: int) -> None:
        """Let the thread write what waits and close the sink, for at most the exit timeout."""
        deadline = time.monotonic() + self._exit_timeout
        item = _Finish(exit_code)
        self._put_finish(item, deadline)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            waiting = self._empty()
            if not self._off.is_set():
                logger.warning(
                    "%s did not finish within %g s (logging.exit_timeout_seconds) and is abandoned; %d records waited.",
                    self.name,
                    self._exit_timeout,
                    waiting,
                )
            self._off.set()
            self._sink.abandon()
            # What held the thread is gone now, as a rule: give it a moment to close what it can.
            self._put_finish(item, time.monotonic() + _LAST_WORDS_SECONDS)
            self._thread.join(_LAST_WORDS_SECONDS)
        if self.dropped:
            logger.warning("%s dropped %d records because it fell behind.", self.name, self.dropped)

    def _put_finish(self, item: _Finish, deadline: float) -> None:
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._queue.put(item, timeout=min(_POLL_SECONDS, self._exit_timeout))
                return
            except queue.Full:
                continue

    def _empty(self) -> int:
        """Throw away what waits; returns the number of records."""
        records = 0
        while True:
            try:
                records += not isinstance(self._queue.get_nowait(), _Finish)
            except queue.Empty:
                return records

    def _work(self) -> None:
        try:
            self._sink.open()
        except Exception as error:
            self._switch_off(error)
        # A sink that is off is still fed from, so that the queue does not fill up, and still closes what it can.
        while not isinstance(item := self._queue.get(), _Finish):
            if not self._off.is_set():
                try:
                    self._sink.write(item)
                except Exception as error:
                    self._switch_off(error)
        try:
            self._sink.finish(item.exit_code)
        except Exception as error:
            self._switch_off(error)

    def _switch_off(self, error: Exception) -> None:
        already = self._off.is_set()
        self._off.set()
        if already:
            logger.debug("%s, switched off before: %s", self.name, cause(error))
        else:
            warn_switched_off(self.name, error)


def warn_switched_off(name: str, error: Exception) -> None:
    """The one warning a sink is given when it fails."""
    logger.warning("%s is switched off: %s. Training goes on.", name, cause(error).rstrip("."))
