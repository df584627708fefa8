"""A sink on its own thread, so that a slow, hung or dying one costs the training thread nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from atlas.system.safe_text import cause
from atlas.tracking.records import Image, Model, Projection, Record, Sink, Table, Video

logger = logging.getLogger(__name__)

_ROOM = 50_000  # records that wait while a sink starts or stalls; beyond that, new ones are dropped
_ROOM_FOR_MEDIA = 300  # of these, records that hold pictures, tables or files
_MEDIA = (Image, Video, Table, Projection, Model)
_LAST_WORDS_SECONDS = 1.0  # of the exit timeout, for an abandoned sink to close what it can
# The thread polls for records instead of being woken by each: on busy cores the kernel lets a woken thread run at once,
# instead of the training thread, which `log` would then wait for.
_LOOK_SECONDS = 0.05


class _Flush:
    """Waits in the queue with the records: its sender is told when everything before it is on disk."""

    def __init__(self) -> None:
        self.done = threading.Event()


class QueuedSink:
    """Feeds a sink from a bounded queue on a daemon thread; if it is full, the record is dropped and counted."""

    def __init__(self, sink: Sink, room: int = _ROOM) -> None:
        self.name = sink.name
        self.sink = sink
        self.dropped = 0
        self._room = room
        self._media = threading.BoundedSemaphore(_ROOM_FOR_MEDIA)
        self._off = threading.Event()
        self._ending = threading.Event()
        self._exit_code = 0
        self._waiting: deque[Record | _Flush] = deque()  # its methods are atomic
        self._thread = threading.Thread(target=self._work, name=f"atlas-{sink.name}", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> bool:
        """Hand over the record, in microseconds; False if there was no room or the sink is off."""
        if self._off.is_set():
            return False
        if len(self._waiting) >= self._room or (isinstance(record, _MEDIA) and not self._media.acquire(blocking=False)):
            self.dropped += 1
            if self.dropped == 1:
                logger.warning("%s falls behind: records that it has no room for are dropped, and counted.", self.name)
            return False
        try:
            prepared = self.sink.prepare(record)
        except Exception as error:
            self._switch_off(error)
            return False
        if prepared is not None:
            self._waiting.append(prepared)
        elif isinstance(record, _MEDIA):
            self._media.release()
        return prepared is not None

    def flush(self, seconds: float) -> bool:
        """Wait, for at most `seconds`, until everything handed over is on disk; True if it is."""
        flush = _Flush()
        self._waiting.append(flush)
        return flush.done.wait(seconds)

    def finish(self, exit_code: int, deadline: float) -> None:
        """Let the thread write what is waiting and close the sink, until `deadline` (of time.monotonic)."""
        start = time.monotonic()
        self._exit_code = exit_code
        self._ending.set()
        last_words = min(_LAST_WORDS_SECONDS, 0.2 * (deadline - start))
        self._thread.join(max(0.0, deadline - last_words - start))
        if self._thread.is_alive():
            waiting = len(self._waiting)
            self._waiting.clear()
            if not self._off.is_set():
                logger.warning(
                    "%s did not finish within %.3g s (logging.exit_timeout_seconds) and is abandoned; "
                    "%d records waited.",
                    self.name,
                    deadline - start,
                    waiting,
                )
            self._off.set()
            self.sink.abandon()
            # What held the thread is usually gone now: give it a moment to close what it can.
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self.dropped:
            logger.warning("%s dropped %d records because it fell behind.", self.name, self.dropped)

    def _work(self) -> None:
        try:
            self.sink.open()
        except Exception as error:
            self._switch_off(error)
        ending = False
        while not ending:
            ending = self._ending.wait(_LOOK_SECONDS)  # first, so that everything given before it is written
            self._write_what_waits()
        try:
            self.sink.finish(self._exit_code)
        except Exception as error:
            self._switch_off(error)

    def _write_what_waits(self) -> None:
        """A sink that is off is still emptied, so that nothing piles up."""
        while (record := self._next()) is not None:
            if isinstance(record, _MEDIA):
                self._media.release()
            if not self._off.is_set():
                try:
                    if isinstance(record, _Flush):
                        self.sink.flush()
                    else:
                        self.sink.write(record)
                except Exception as error:
                    self._switch_off(error)
            if isinstance(record, _Flush):
                record.done.set()

    def _next(self) -> Record | _Flush | None:
        try:
            return self._waiting.popleft()
        except IndexError:  # nothing is waiting, or `finish` has just thrown it away
            return None

    def _switch_off(self, error: Exception) -> None:
        already = self._off.is_set()
        self._off.set()
        if already:
            logger.debug("%s, switched off before: %s", self.name, cause(error))
        else:
            warn_switched_off(self.name, error)


def warn_switched_off(name: str, error: Exception) -> None:
    """The one warning when a sink fails."""
    logger.warning("%s is switched off: %s. Training goes on.", name, cause(error).rstrip("."))
