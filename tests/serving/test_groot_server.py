"""GR00T's protocol, in both of its encodings of arrays, as its clients speak it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from atlas.errors import InputError
from atlas.serving.access import Access, Limits
from atlas.serving.protocols.groot_protocol import group_names
from atlas.serving.server import ServerSettings, serving
from atlas.system.array_codec import Form, pack, unpack
from atlas.types import ActionSpec
from tests.action_spaces import TWO_ARMS
from tests.policies.test_policy import HORIZON
from tests.serving.malformed import malformed
from tests.serving.running import TellingActor, running

KEY = "0123456789abcdef0123"


def settings(**more: Any) -> ServerSettings:
    return ServerSettings("groot", **{"access": Access(port=0), **more})


@contextmanager
def client(port: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.connect(f"tcp://127.0.0.1:{port}")
        yield socket


def asked(socket: zmq.Socket[bytes], endpoint: str, data: Any = None, form: Form = "groot-npy", **more: Any) -> Any:
    socket.send(pack({"endpoint": endpoint, **({"data": data} if data is not None else {}), **more}, form))
    return unpack(socket.recv())


def observation(pixel: int = 7, **changes: Any) -> dict[str, Any]:
    image = np.full((1, 1, 32, 32, 3), pixel, np.uint8)
    state = {"state.arm": np.full((1, 1, 7), 0.5, np.float32), "state.hand": np.zeros((1, 1, 1), np.float32)}
    return {
        "video.agentview": image,
        "video.eye_in_hand": image,
        **state,
        "annotation.human.task_description": ["go"],
        **changes,
    }


@pytest.mark.parametrize("form", ["groot-npy", "groot-nd"])
def test_an_observation_is_answered_in_the_encoding_it_came_in(form: Form) -> None:
    with running(TellingActor(), settings()) as port, client(port) as socket:
        socket.send(pack({"endpoint": "get_action", "data": {"observation": observation(9), "options": None}}, form))
        answer = socket.recv()

    actions, info = unpack(answer)
    assert {name: array.shape for name, array in actions.items()} == {
        "position": (1, HORIZON, 3),
        "rotation": (1, HORIZON, 3),
        "gripper": (1, HORIZON, 1),
    }
    assert actions["position"][0, 0].tolist() == [0, 1, 9] and actions["position"].dtype == np.float32
    assert info["infer_ms"] >= 0
    assert (b"__ndarray_class__" in answer) == (form == "groot-npy")


def test_msgpack_numpys_own_bytes_are_read() -> None:
    """As the package `msgpack-numpy` writes them, with the memory of the array itself."""
    image = np.full((2, 2, 3), 5, np.uint8)
    sent = {b"nd": True, b"type": "|u1", b"kind": b"", b"shape": (2, 2, 3), b"data": image.data}

    np.testing.assert_array_equal(unpack(msgpack.packb({"a": sent}))["a"], image)


def test_nested_observations_and_the_form_that_evaluations_send() -> None:
    flat = observation(3)
    nested = {
        "video": {"agentview": flat["video.agentview"], "eye_in_hand": flat["video.eye_in_hand"]},
        "state": {"all": np.zeros((1, 1, 8), np.float32)},
        "language": {"task": [["go"]]},
    }

    with running(TellingActor(), settings()) as port, client(port) as socket:
        actions, _ = asked(socket, "get_action", {"observation": nested, "options": None})

    assert actions["position"][0, 0, 2] == 3


def test_what_it_is_told_about_itself() -> None:
    with running(TellingActor(), settings()) as port, client(port) as socket:
        ping = asked(socket, "ping")
        config = asked(socket, "get_modality_config")

    assert ping["status"] == "ok"
    told = {name: each["as_json"] for name, each in config.items()}
    assert told["video"] == {"delta_indices": [0], "modality_keys": ["agentview", "eye_in_hand"]}
    assert told["action"]["delta_indices"] == list(range(HORIZON))
    assert all(each["__ModalityConfig_class__"] for each in config.values())


def test_connections_are_sessions_and_reset_begins_an_episode() -> None:
    def told(socket: zmq.Socket[bytes]) -> list[float]:
        actions, _ = asked(socket, "get_action", {"observation": observation(), "options": None})
        return actions["position"][0, 0, :2].tolist()

    with running(TellingActor(), settings()) as port, client(port) as one, client(port) as other:
        answers = [told(one), told(other), told(one)]
        assert asked(one, "reset", {"options": {"seed": 5}}) == {}
        answers.append(told(one))

    assert answers == [[0, 1], [0, 1], [0, 2], [5, 1]]


@pytest.mark.parametrize(
    ("endpoint", "data", "words"),
    [
        ("get_action", {"observation": {}}, "has nothing"),
        ("get_action", {"observation": {**observation(), "state.arm": np.zeros((1, 1, 6))}}, "'state.arm' has 6"),
        ("get_action", {"observation": {**observation(), "video.agentview": np.zeros((2, 1, 4, 4, 3))}}, "shape"),
        ("get_action", {"observation": observation(**{"annotation.human.task_description": ["fail"]})}, "failed"),
        ("get_actions", {}, "Did you mean 'get_action'"),
        ("kill", {}, "kill is off"),
        ("reset", {"options": {"seed": -1}}, "seed is -1"),
        ("get_action", [1], "no endpoint"),
    ],
)
def test_what_is_wrong_is_answered_and_the_next_request_works(endpoint: str, data: Any, words: str) -> None:
    with running(TellingActor(), settings()) as port, client(port) as socket:
        answer = asked(socket, endpoint, data)
        assert asked(socket, "ping")["status"] == "ok"

    assert words in answer["error"]


def test_kill_ends_the_server_where_it_was_asked_for() -> None:
    async def ended(allowed: bool) -> tuple[Any, bool]:
        killed = asyncio.Event()
        async with serving(TellingActor(), settings(allow_kill=allowed), killed.set) as port:
            with client(port) as socket:
                answer = await asyncio.to_thread(asked, socket, "kill")
        return answer, killed.is_set()

    answer, killed = asyncio.run(ended(True))
    refused, kept = asyncio.run(ended(False))

    assert answer["status"] == "ok" and killed
    assert "--allow-kill" in refused["error"] and not kept


def test_bytes_that_are_no_request_are_answered() -> None:
    with running(TellingActor(), settings()) as port, client(port) as socket:
        for frame in (b"", b"\xc1", pack([1]), pack({"endpoint": ["ping"]})):
            socket.send(frame)
            assert "error" in unpack(socket.recv())


def test_malformed_messages_hurt_nobody() -> None:
    """The whole of it, with memory measured, is benchmarks/serve_fuzz.py."""
    rng = random.Random(2)
    whole = pack({"endpoint": "get_action", "data": {"observation": observation(), "options": None}}, "groot-npy")

    with running(TellingActor(), settings()) as port, client(port) as valid, client(port) as hostile:
        for number in range(300):
            frame = malformed(whole, rng)
            hostile.send(frame if isinstance(frame, bytes) else frame.encode())
            hostile.recv()
            if number % 50 == 0:
                actions, _ = asked(valid, "get_action", {"observation": observation(number % 200), "options": None})
                assert actions["position"][0, 0, 2] == number % 200


def test_the_key_is_asked_for() -> None:
    with running(TellingActor(), settings(access=Access(port=0, key=KEY))) as port, client(port) as socket:
        assert "api_token" in asked(socket, "ping")["error"]
        assert "api_token" in asked(socket, "ping", api_token="x" * 20)["error"]
        assert asked(socket, "ping", api_token=KEY)["status"] == "ok"


def test_more_clients_than_allowed_are_told() -> None:
    def asking(socket: zmq.Socket[bytes]) -> Any:
        return asked(socket, "get_action", {"observation": observation(), "options": None})

    with running(TellingActor(), settings(limits=Limits(sessions=1))) as port, client(port) as one, client(port) as two:
        assert isinstance(asking(one), list)
        assert "try again later" in asking(two)["error"]
        assert isinstance(asking(one), list)


def test_a_client_that_says_nothing_is_forgotten() -> None:
    actor = TellingActor()
    limits = Limits(sessions=1, idle_seconds=0.0)

    with running(actor, settings(limits=limits)) as port, client(port) as one, client(port) as two:
        for socket in (one, two, one):
            assert isinstance(asked(socket, "get_action", {"observation": observation(), "options": None}), list)

    assert len(actor.seeds) == 1


def test_a_port_in_use_is_named() -> None:
    with running(TellingActor(), settings()) as port, pytest.raises(InputError, match=f"Port {port} .* in use"):  # noqa: SIM117
        with running(TellingActor(), settings(access=Access(port=port))):
            pass


def test_groups_have_names_of_their_own() -> None:
    assert group_names(ActionSpec()) == ["position", "rotation", "gripper"]
    names = group_names(TWO_ARMS)
    assert len(set(names)) == len(names) and "left_gripper" in names
