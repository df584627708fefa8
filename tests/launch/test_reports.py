"""What a rank leaves for its launcher when it fails."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas.errors import InputError
from atlas.launch.rank import FOLDER, leave_error
from atlas.launch.reports import read_reports


@pytest.fixture(autouse=True)
def as_rank_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_an_error_is_left_once_and_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")

    assert leave_error(ValueError("https://host?key=0123456789abcdef is wrong"))
    assert leave_error(ConnectionError("what follows while it ends"))

    report = read_reports(tmp_path)[1]
    assert report.kind == "error" and not report.consequence
    assert "0123456789abcdef" not in report.text + report.summary
    assert report.summary == "ValueError: https://host?key=*** is wrong" and "Traceback" not in report.summary


def test_wrong_input_is_its_message_alone_and_a_stop_is_no_failure(tmp_path: Path) -> None:
    assert leave_error(InputError("data.path is empty"))
    assert read_reports(tmp_path)[1].text == "data.path is empty"

    class Stopped(Exception):
        exit_code = 143

    assert not leave_error(Stopped())
