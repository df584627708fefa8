"""Threads that share the machine's cores with other work."""

from __future__ import annotations

import os

import pytest

from atlas.cli import main
from atlas.system.process_control.threads import yield_cores


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)


def test_every_command_yields_its_cores_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("atlas.cli.app", lambda *_, **__: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    with pytest.raises(SystemExit):
        main()
    assert seen and 0 < int(seen[0]) < 30_000


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "infinite"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    yield_cores()
    assert dict(os.environ) == before
