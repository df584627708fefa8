"""What is said about failed ranks, given how each ended; the ranks themselves are in test_failing_ranks.py."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.launch.failure_report import Ending, exit_code, failure_lines
from atlas.launch.meeting import Failure
from atlas.launch.reports import Report, is_consequence


def error(rank: int, time: float, consequence: bool = False, summary: str = "ValueError: a defect") -> Report:
    return Report(rank, "error", f"Traceback of {rank}", summary, consequence, time)


def ending(codes: dict[int, int], *reports: Report, **more: object) -> Ending:
    """Ranks that reported their codes, except those that a signal killed."""
    told = {rank: code for rank, code in codes.items() if code >= 0}
    return Ending(codes, told, {report.rank: report for report in reports}, **more)  # type: ignore[arg-type]


def test_nothing_is_said_where_all_is_well() -> None:
    assert failure_lines(ending({0: 0, 1: 0})) == []
    assert failure_lines(ending({0: 143, 1: 143}, stopped_by=signal.SIGTERM)) == []
    assert failure_lines(ending({0: 2, 1: -15})) == []  # rank 0 has printed what was wrong


def test_the_earliest_error_of_its_own_is_the_cause() -> None:
    ranks = ending({0: 1, 1: 1, 2: 1}, error(0, 1.0, consequence=True, summary="gloo"), error(2, 3.0), error(1, 2.0))

    assert failure_lines(ranks) == ["Rank 1:", "Traceback of 1", "Ranks 0 and 2 ended with it."]


def test_a_second_error_of_another_kind_is_named() -> None:
    ranks = ending({0: 1, 1: 1}, error(0, 1.0), error(1, 2.0, summary="KeyError: 'x'"))

    assert failure_lines(ranks) == ["Rank 0:", "Traceback of 0", "Rank 1 also failed: KeyError: 'x'"]


def test_of_consequences_alone_the_earliest_is_shown() -> None:
    ranks = ending({0: 1, 1: 1}, error(0, 2.0, consequence=True), error(1, 1.0, consequence=True))

    assert failure_lines(ranks)[:2] == ["Rank 1:", "Traceback of 1"]


def test_a_sigterm_is_a_cause_only_where_it_came_first() -> None:
    gloo = error(1, 5.0, consequence=True)

    first = ending({0: -15, 1: 1}, gloo, deaths={0: 4.9, 1: 5.1})
    later = ending({0: -15, 1: 1}, gloo, deaths={0: 5.2, 1: 5.1})

    assert failure_lines(first) == ["Rank 0 was killed by SIGTERM.", "Rank 1 ended with it."]
    assert failure_lines(later) == ["Rank 1:", "Traceback of 1", "Rank 0 ended with it."]


def test_ranks_that_a_stop_has_caught_early_are_named() -> None:
    ranks = ending({1: 143}, stopped_by=signal.SIGTERM, deaths={0: 1.0, 1: 2.0})

    assert failure_lines(ranks) == ["Rank 0 ended at the signal, before the step was finished."]
    assert exit_code(ranks, processes=2) == 143


def test_what_failed_on_another_machine_is_the_cause_of_consequences_only() -> None:
    elsewhere = Failure(1, "rank 3: ValueError: a defect", consequence=False, code=1)

    of_it = ending({0: 1}, error(0, 1.0, consequence=True), elsewhere=elsewhere)
    own = ending({0: 1}, error(0, 1.0), elsewhere=elsewhere)

    assert failure_lines(of_it) == ["Node 1 failed first: rank 3: ValueError: a defect.", "Rank 0 ended with it."]
    assert failure_lines(own) == ["Rank 0:", "Traceback of 0"]


def test_the_exit_code_is_that_of_the_cause() -> None:
    gloo = error(0, 2.0, consequence=True)

    assert exit_code(ending({0: 1, 1: -9}, gloo), 2) == 137
    assert exit_code(ending({0: 1, 1: -9}, gloo, ended={1: "was running"}), 2) == 1
    assert exit_code(ending({0: 1}, gloo, elsewhere=Failure(1, "", False, code=2)), 1) == 2


@pytest.mark.parametrize(
    ("raised", "consequence"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:30304"), True),
        (ConnectionResetError("Connection reset by peer"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_errors_that_only_say_that_another_process_is_gone(raised: Exception, consequence: bool) -> None:
    assert is_consequence(raised) == consequence


def test_what_breaks_while_an_error_unwinds_does_not_hide_it() -> None:
    try:
        try:
            raise ValueError("a defect")
        finally:
            raise RuntimeError("gloo: Connection closed by peer")
    except RuntimeError as error:
        assert not is_consequence(error)


def test_importing_the_launcher_is_light() -> None:
    code = "import sys, atlas.launch; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert done.stdout == "[]\n"
