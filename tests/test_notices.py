"""Lines that are said once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from atlas.system.process_control.notices import notice, said_once, shown_to_the_user
from atlas.tracking.sinks.console import setup_logging

FORM = logging.Formatter("%(message)s")


def test_a_notice_is_shown_once_for_as_long_as_a_command_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again by the next one; without one it is a log line, which nobody has asked for. Other ranks are silent."""
    for _ in range(2):
        notice("before %s", "it")
        with shown_to_the_user(FORM):
            for thing in ("one", "one", "another"):
                notice("of %s", thing)
        assert capsys.readouterr().err == "of one\nof another\n"
    monkeypatch.setenv("RANK", "1")
    with shown_to_the_user(FORM):
        notice("of %s", "one")
    assert capsys.readouterr().err == ""


def test_a_runs_log_has_it_once_and_so_has_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what the command said before the run began is not said again."""
    with shown_to_the_user(FORM):
        notice("early")
        undo = setup_logging(tmp_path, is_main=True)
        for line in ("early", "late", "late"):
            notice(line)
        undo()

    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["early", "late"]
    assert [line.split()[-1] for line in (tmp_path / "train.log").read_text().splitlines()] == ["late"]


def test_without_a_command_it_is_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), said_once():
        for _ in range(2):
            with said_once():
                notice("line")
    assert caplog.messages == ["line"]
