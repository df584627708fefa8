"""The commands, in processes of their own."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas.serving.policy_client import AtlasClient
from atlas.serving.server import ServerSettings
from atlas.serving.server_bench import made_up_message, measure_load
from tests import warm
from tests.rollout.test_executor import acting
from tests.serving.running import LOCAL, TellingActor, running, seen


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    acting("regression").save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@contextmanager
def server(policy: Path, *arguments: str) -> Iterator[tuple[Any, str]]:
    """The process of a server, and what it said when it was ready."""
    process = warm.start_atlas(
        "serve",
        "--checkpoint",
        str(policy),
        "--port",
        "0",
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(policy: Path, number: signal.Signals) -> None:
    with server(policy, "--execute", "3") as (process, said):
        port = int(said.rpartition(":")[2].split()[0])
        with AtlasClient(f"ws://127.0.0.1:{port}") as client:
            actions = client.plan({0: seen()})[0]
            process.send_signal(number)
            code = process.wait(timeout=30)

    assert f"{policy} is served at 127.0.0.1:{port} (openpi)" in said
    assert actions.shape == (3, 7) and code == 128 + number


def test_another_host_without_a_key_is_said(policy: Path) -> None:
    with server(policy, "--host", "0.0.0.0") as (process, _):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)

    assert "--api-key-file" in errors and "Traceback" not in errors


def test_its_speed_is_measured() -> None:
    with running(TellingActor(seconds=0.005), ServerSettings(access=LOCAL, batch=2)) as port:
        message = made_up_message(("agentview", "eye_in_hand"), proprio_dim=8, size=32)
        one, four = (asyncio.run(measure_load(port, message, clients, 0.2, batch=2)) for clients in (1, 4))

    assert (one.clients, four.clients, one.together) == (1, 4, 1) and 1 < four.together <= 2
    assert one.per_second > 0 and one.p99_ms >= one.p50_ms >= one.infer_p50_ms > 5
    assert one.overhead_p50_ms > 0 and one.to_dict()["per_second"] == one.per_second


@pytest.mark.slow
def test_the_command_measures_a_server_of_its_own(
    policy: Path, atlas: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--clients", "1,2", "--seconds", "0.3", "--image-size", "32", "--json"]

    code = atlas("bench-serve", "--checkpoint", str(policy), *arguments)

    loads = json.loads(capfd.readouterr().out)["loads"]
    assert code == 0
    assert [(load["clients"], load["batch"]) for load in loads] == [(1, 32), (2, 32), (16, 32), (16, 1)]
    assert loads[-1]["together"] == 1 < loads[-2]["together"]
