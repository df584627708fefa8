"""openpi's protocol as a client of anybody's sees it: frames, errors, the key, and what malformed messages do."""

from __future__ import annotations

import http.client
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from atlas.errors import InputError
from atlas.serving.access import Access, Limits, read_key
from atlas.serving.server import ServerSettings
from atlas.system.array_codec import pack, unpack
from tests.policies.test_policy import HORIZON
from tests.serving.malformed import malformed
from tests.serving.running import LOCAL, TellingActor, libero_message, running

KEY = "0123456789abcdef0123"


@contextmanager
def client(port: int, **more: Any) -> Iterator[ClientConnection]:
    """A connection whose greeting is read."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, close_timeout=1, **more) as connection:
        greeting = connection.recv(10)
        assert isinstance(greeting, bytes) and isinstance(unpack(greeting), dict)
        yield connection


@contextmanager
def client_when_there_is_room(port: int) -> Iterator[ClientConnection]:
    """A server learns a moment later that the client before is gone."""
    for _ in range(500):
        try:
            connecting = client(port)
            connection = connecting.__enter__()
            break
        except InvalidStatus:
            time.sleep(0.01)
    try:
        yield connection
    finally:
        connecting.__exit__(None, None, None)


def asked(connection: ClientConnection, message: Any) -> Any:
    """The answer: a mapping, or a text where something is wrong."""
    connection.send(message if isinstance(message, bytes | str) else pack(message))
    answer = connection.recv(10)
    return answer if isinstance(answer, str) else unpack(answer)


def test_an_observation_is_answered_with_a_chunk_and_times() -> None:
    with running(TellingActor()) as port, client(port) as connection:
        first, second = (asked(connection, libero_message(pixel=9)) for _ in range(2))

    assert first["actions"].shape == (HORIZON, 7) and first["actions"][0, :3].tolist() == [0, 1, 9]
    assert first["policy_timing"]["infer_ms"] >= 0 and "prev_total_ms" not in first["server_timing"]
    assert second["server_timing"]["prev_total_ms"] >= first["policy_timing"]["infer_ms"]
    arrays = [value for value in first.values() if isinstance(value, np.ndarray)]
    assert all(len(array) == HORIZON for array in arrays)


def test_the_first_frame_says_what_the_policy_is() -> None:
    with running(TellingActor()) as port, connect(f"ws://127.0.0.1:{port}") as connection:
        greeting = connection.recv(10)

    assert isinstance(greeting, bytes)
    told = unpack(greeting)["atlas"]
    assert (told["version"], told["cameras"], told["sends"]) == (1, ["agentview", "eye_in_hand"], HORIZON)
    assert "observation/wrist_image" in told["wanted"]


def test_connections_have_episodes_of_their_own() -> None:
    with running(TellingActor()) as port, client(port) as one, client(port) as other:
        answers = [asked(each, libero_message(pixel))["actions"] for each, pixel in ((one, 1), (other, 2), (one, 3))]

    assert [answer[0, 1:3].tolist() for answer in answers] == [[1, 1], [1, 2], [2, 3]]


def test_what_is_wrong_is_answered_and_the_next_request_works() -> None:
    lacking = libero_message()
    del lacking["observation/wrist_image"]

    with running(TellingActor()) as port, client(port) as connection:
        answers = [asked(connection, message) for message in (lacking, [1], libero_message(pixel=5))]

    assert "lacks 'observation/wrist_image'" in answers[0] and "uint8 [H, W, 3]" in answers[0]
    assert "should be a mapping" in answers[1]
    assert answers[2]["actions"][0, 2] == 5


@pytest.mark.parametrize(
    ("message", "words"),
    [("hello", "openpi's protocol"), (b"\xc1garbage", "no msgpack"), (libero_message(instruction="fail"), "failed")],
    ids=["text", "garbage", "policy fails"],
)
def test_the_rest_is_told_in_a_text_and_closes_with_1011(message: Any, words: str) -> None:
    with running(TellingActor()) as port, client(port) as connection:
        answer = asked(connection, message)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(10)
        with client(port) as another:
            assert asked(another, libero_message())["actions"].shape == (HORIZON, 7)

    assert words in answer and "Traceback" not in answer
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011


def test_a_client_of_another_version_of_atlas_is_told() -> None:
    with running(TellingActor()) as port, client(port) as connection:
        answer = asked(connection, libero_message() | {"atlas": {"version": 99, "seed": 1}})

    assert "version 99" in answer and "install the same version" in answer


def status_of(port: int, **headers: str) -> tuple[int, str]:
    try:
        with connect(f"ws://127.0.0.1:{port}", additional_headers=headers):
            return 101, ""
    except InvalidStatus as error:
        return error.response.status_code, (error.response.body or b"").decode()


def test_the_key_is_asked_for() -> None:
    with running(TellingActor(), ServerSettings(access=Access(port=0, key=KEY))) as port:
        assert status_of(port, Authorization=f"Api-Key {KEY}")[0] == 101
        assert status_of(port, Authorization=f"Bearer {KEY}")[0] == 101
        wrong = [status_of(port), status_of(port, Authorization=f"Api-Key {KEY}x"), status_of(port, Authorization=KEY)]

    assert [status for status, _ in wrong] == [401] * 3 and "Authorization: Api-Key KEY" in wrong[0][1]


def test_web_pages_are_not_let_in() -> None:
    with running(TellingActor()) as port:
        assert status_of(port, Origin="http://somewhere.example")[0] == 403


def test_it_says_that_it_is_well() -> None:
    with running(TellingActor(), ServerSettings(access=Access(port=0, key=KEY))) as port:
        ask = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        ask.request("GET", "/healthz")
        answer = ask.getresponse()
        assert (answer.status, answer.read()) == (200, b"OK\n")


def test_more_clients_than_allowed_are_sent_away_and_come_in_when_there_is_room() -> None:
    settings = ServerSettings(access=LOCAL, limits=Limits(sessions=1))

    with running(TellingActor(), settings) as port:
        with client(port) as connection:
            status, said = status_of(port)
            asked(connection, libero_message())
        with client_when_there_is_room(port) as connection:
            assert asked(connection, libero_message())["actions"][0, 1] == 1

    assert status == 503 and "try again later" in said


def test_a_message_that_is_too_large_ends_the_connection() -> None:
    settings = ServerSettings(access=LOCAL, limits=Limits(message_bytes=10_000))

    with running(TellingActor(), settings) as port, client(port) as connection:
        connection.send(bytes(20_000))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(10)

    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_a_client_that_says_nothing_is_forgotten() -> None:
    settings = ServerSettings(access=LOCAL, limits=Limits(sessions=1, idle_seconds=0.05))

    with running(TellingActor(), settings) as port, client(port) as connection:
        with pytest.raises(ConnectionClosed):
            connection.recv(10)
        with client_when_there_is_room(port) as another:
            another.send(pack(libero_message()))


def test_a_client_that_disappears_is_forgotten() -> None:
    actor = TellingActor()

    with running(actor, ServerSettings(access=LOCAL, limits=Limits(sessions=1))) as port:
        with client(port) as connection:
            asked(connection, libero_message())
            connection.send(pack(libero_message()))
            connection.socket.close()
        with client_when_there_is_room(port) as another:
            asked(another, libero_message())
            assert len(actor.seeds) == 1


def test_malformed_messages_hurt_nobody() -> None:
    """The whole of it, with memory measured, is benchmarks/serve_fuzz.py."""
    rng = random.Random(0)
    whole = pack(libero_message())

    with running(TellingActor()) as port, client(port) as valid:
        for number in range(150):
            with client(port) as connection:
                connection.send(malformed(whole, rng))
                try:
                    connection.recv(10)
                except ConnectionClosed:
                    continue
            if number % 50 == 0:
                assert asked(valid, libero_message(pixel=number % 200))["actions"][0, 2] == number % 200


def test_bytes_that_are_no_websocket_hurt_nobody() -> None:
    rng = random.Random(1)

    with running(TellingActor()) as port:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
                raw.sendall(rng.randbytes(rng.randrange(1, 500)) + b"\r\n\r\n")
        with client(port) as connection:
            assert asked(connection, libero_message())["actions"].shape == (HORIZON, 7)


def test_a_port_in_use_is_named() -> None:
    with running(TellingActor()) as port, pytest.raises(InputError, match=f"Port {port} of 127.0.0.1 is in use"):  # noqa: SIM117
        with running(TellingActor(), ServerSettings(access=Access(port=port))):
            pass


def test_another_address_without_a_key_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for access in (Access(), Access("::1"), Access("localhost"), Access("0.0.0.0", key=KEY)):
        access.warn()
    assert not caplog.records
    Access("0.0.0.0").warn()
    assert "--api-key-file" in caplog.text


@pytest.mark.parametrize("text", ["", "short", "two words of a key", "zeichenkette-mit-ü-darin", f"{KEY}\n{KEY}"])
def test_a_file_that_holds_no_key_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(text)

    with pytest.raises(InputError, match="--api-key-file"):
        read_key(tmp_path / "key")
    with pytest.raises(InputError, match="No such file"):
        read_key(tmp_path / "none")


def test_a_key_that_others_can_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    assert read_key(file) == KEY and not caplog.records

    file.chmod(0o644)
    read_key(file)

    assert "chmod 600" in caplog.text
