"""vla-eval's frames, and its own client where the package is installed (pip install vla-eval)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from atlas.data.sampling.history import History
from atlas.serving.access import Access
from atlas.serving.protocols.vla_eval_protocol import described_actions
from atlas.serving.server import ServerSettings
from atlas.system.array_codec import pack, unpack
from atlas.types import ActionSpec, Observation
from tests.policies.test_policy import HORIZON
from tests.serving.malformed import malformed
from tests.serving.running import TellingActor, running

SETTINGS = ServerSettings("vla-eval", Access(port=0))


@contextmanager
def client(port: int) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{port}", compression=None, close_timeout=1) as connection:
        yield connection


def said(connection: ClientConnection, kind: str, payload: Any, seq: int = 1) -> None:
    connection.send(pack({"type": kind, "payload": payload, "seq": seq, "timestamp": 1.0}, "vla-eval"))


def asked(connection: ClientConnection, kind: str, payload: Any, seq: int = 1) -> Any:
    said(connection, kind, payload, seq)
    return unpack(connection.recv(10))  # type: ignore[arg-type]


def observation(pixel: int = 7, instruction: str = "go") -> dict[str, Any]:
    """As its LIBERO sends it."""
    image = np.full((32, 32, 3), pixel, np.uint8)
    return {
        "images": {"agentview": image, "wrist": image},
        "states": np.zeros(8, np.float32),
        "controller_states": np.ones(8, np.float32),
        "task_description": instruction,
    }


def test_every_step_has_an_action_and_the_policy_is_asked_once_a_chunk() -> None:
    actor = TellingActor()

    with running(actor, SETTINGS) as port, client(port) as connection:
        said(connection, "episode_start", {"task": {"name": "go"}})
        answers = [asked(connection, "observation", observation(), seq) for seq in range(HORIZON + 1)]
        said(connection, "episode_end", {"metrics": {}})
        said(connection, "episode_start", {"task": {}})
        answers.append(asked(connection, "observation", observation(), 9))

    assert [answer["seq"] for answer in answers] == [*range(HORIZON + 1), 9]
    assert all(answer["type"] == "action" and answer["payload"]["actions"].shape == (7,) for answer in answers)
    assert [answer["payload"]["actions"][6] for answer in answers] == [*range(HORIZON), 0, 0]
    assert [answer["payload"]["actions"][1] for answer in answers] == [1] * HORIZON + [2, 1]


class LookingBack(TellingActor):
    """Keeps the first pixel of each frame that it is shown."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.processor = replace(self.processor, history=history)
        self.shown: list[list[int]] = []

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        for seen in observations.values():
            self.shown.append([int(each.images["agentview"][0, 0, 0]) for each in (*seen.past, seen)])
        return super().plan(observations)


def test_a_policy_that_looks_back_is_shown_the_steps_of_the_episode() -> None:
    """A benchmark sends the present frame alone, in every step."""
    actor = LookingBack(History(steps=3, stride=2))

    with running(actor, SETTINGS) as port, client(port) as connection:
        actor.shown.clear()  # of the warming up
        for episode in (10, 100):
            said(connection, "episode_start", {"task": {}})
            for step in range(HORIZON + 1):
                assert asked(connection, "observation", observation(episode + step))["type"] == "action"

    assert actor.shown == [[f] * 3 if first else [f + HORIZON - 4, f + HORIZON - 2, f + HORIZON]
                           for f in (10, 100) for first in (True, False)]  # fmt: skip


def test_hello_is_answered_with_what_the_actions_mean() -> None:
    with running(TellingActor(), SETTINGS) as port, client(port) as connection:
        answer = asked(connection, "hello", {"protocol_version": 1, "harness_version": "0.8.0"}, seq=4)
        other = asked(connection, "hello", {"protocol_version": 2})

    assert (answer["type"], answer["seq"], answer["payload"]["protocol_version"]) == ("hello", 4, 1)
    assert answer["payload"]["observation_params"] == {"send_wrist_image": True, "send_state": True}
    assert other["type"] == "error" and "version 1" in other["payload"]["error"]


def test_libero_actions_are_called_as_its_benchmark_calls_them() -> None:
    formats = {name: each["format"] for name, each in described_actions(ActionSpec()).items()}

    assert formats == {"position": "delta_xyz", "rotation": "axis_angle", "gripper": "binary_close_positive"}


def test_what_is_wrong_is_answered_and_the_next_step_works() -> None:
    lacking = observation()
    del lacking["images"]["wrist"]

    with running(TellingActor(), SETTINGS) as port, client(port) as connection:
        answers = [asked(connection, "observation", each) for each in (lacking, observation(instruction="fail"))]
        assert asked(connection, "observation", observation())["type"] == "action"

    assert [answer["type"] for answer in answers] == ["error", "error"]
    assert "'images.wrist'" in answers[0]["payload"]["error"] and "failed" in answers[1]["payload"]["error"]


@pytest.mark.parametrize("frame", ["text", b"\xc1", pack({"type": "observation"}), pack({"type": 3, "payload": {}})])
def test_what_is_no_frame_ends_the_connection_with_a_text(frame: Any) -> None:
    with running(TellingActor(), SETTINGS) as port, client(port) as connection:
        connection.send(frame)
        answer = connection.recv(10)
        with pytest.raises(ConnectionClosed):
            connection.recv(10)

    assert isinstance(answer, str) and answer


def test_malformed_messages_hurt_nobody() -> None:
    """The whole of it, with memory measured, is benchmarks/serve_fuzz.py."""
    rng = random.Random(3)
    whole = pack({"type": "observation", "payload": observation(), "seq": 1, "timestamp": 0.0}, "vla-eval")

    with running(TellingActor(), SETTINGS) as port, client(port) as valid:
        for number in range(100):
            with client(port) as hostile, suppress(ConnectionClosed, TimeoutError):
                hostile.send(malformed(whole, rng))
                hostile.recv(0.1)  # the beginning of an episode is not answered
            if number % 50 == 0:
                said(valid, "episode_start", {})
                assert asked(valid, "observation", observation(number))["payload"]["actions"][2] == number


def test_vla_evals_own_client_is_answered() -> None:
    connection_module = pytest.importorskip("vla_eval.connection", reason="vla-eval is not installed")

    async def episode(port: int) -> tuple[Any, list[Any]]:
        async with connection_module.Connection(f"ws://127.0.0.1:{port}", timeout=10) as connection:
            await connection.start_episode({"task": {"name": "go"}})
            actions = [await connection.act(observation(pixel=8)) for _ in range(3)]
            await connection.end_episode({})
            return connection.server_info, actions

    with running(TellingActor(), SETTINGS) as port:
        info, actions = asyncio.run(episode(port))

    assert info["model_server"] == "atlas"
    assert [action["actions"][2] for action in actions] == [8, 8, 8]  # through its PNG, or as it is
