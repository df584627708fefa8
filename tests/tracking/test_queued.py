"""A sink that fails while it is handed a record loses its records, and nothing else."""

from __future__ import annotations

import time

import pytest

from atlas.tracking.records import Record, Scalars, Sink
from atlas.tracking.sinks.queued import QueuedSink


class Refusing(Sink):
    name = "refusing"

    def __init__(self) -> None:
        self.asked = 0

    def prepare(self, record: Record) -> Record:
        self.asked += 1
        raise ValueError("not this one")

    def write(self, record: Record) -> None:
        raise AssertionError("nothing was prepared")


def test_what_fails_on_the_trainings_thread_switches_the_sink_off(caplog: pytest.LogCaptureFixture) -> None:
    sink = Refusing()
    queued = QueuedSink(sink)

    taken = [queued.write(Scalars({"train/loss": 1.0}, step)) for step in range(3)]
    queued.finish(0, time.monotonic() + 5)

    assert taken == [False] * 3 and sink.asked == 1
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "refusing is switched off: ValueError: not this one" in warning
