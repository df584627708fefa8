"""LeRobot's asynchronous inference, request by request, as its robot client asks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from atlas.errors import InputError
from atlas.serving.access import Access, Limits
from atlas.serving.protocols.lerobot_protocol import _field
from atlas.serving.server import ServerSettings
from tests.serving.lerobot_messages import NAMES, Client, dumps, observation, setup
from tests.serving.malformed import malformed
from tests.serving.running import TellingActor, running

KEY = "0123456789abcdef0123"


def settings(**more: Any) -> ServerSettings:
    return ServerSettings("lerobot", **{"access": Access(port=0), "name": "outputs/first", **more})


@contextmanager
def client(port: int, key: str | None = None) -> Iterator[Client]:
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield Client(channel, key)


def refused(work: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        work()
    return error.value.code(), error.value.details()  # type: ignore[attr-defined]


@pytest.mark.parametrize("pieces", [1, 4])
def test_an_observation_is_answered_with_timed_actions(pieces: int) -> None:
    with running(TellingActor(), settings()) as port, client(port) as robot:
        robot.begin()
        robot.send(observation(5, pixel=9, state=0.25), pieces)
        actions = robot.actions()

    assert [action.timestep for action in actions] == [5, 6, 7]  # as many as the client wants of a chunk
    assert actions[1].timestamp == pytest.approx(actions[0].timestamp + 1 / 20)
    np.testing.assert_allclose(actions[0].action.numpy()[:4], [0, 1, 9, 0.25])


def test_the_newest_observation_counts_and_those_that_say_nothing_new_are_left_out() -> None:
    with running(TellingActor(), settings()) as port, client(port) as robot:
        robot.begin()
        robot.send(observation(1, pixel=1))
        robot.send(observation(2, pixel=2))
        assert robot.actions()[0].action[2] == 2
        robot.send(observation(3, state=0.6))  # the state is near
        robot.send(observation(2, state=9.0))  # the step was planned
        robot.send(observation(4, pixel=4, state=0.6, must_go=True))
        told = robot.actions()[0]
        robot.send(observation(5, pixel=5, state=9.0))
        last = robot.actions()[0]

    assert (told.timestep, told.action[2], last.timestep, last.action[1]) == (4, 4, 5, 3)


def test_another_checkpoint_is_refused_by_name() -> None:
    with running(TellingActor(), settings()) as port, client(port) as robot:
        robot.ask("Ready")
        code, why = refused(
            lambda: robot.ask("SendPolicyInstructions", _field(1, dumps(setup("somebody/other-policy"))))
        )
        robot.ask("SendPolicyInstructions", _field(1, dumps(setup("first"))))

    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "somebody/other-policy" in why and "--pretrained_name_or_path=outputs/first" in why


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (observation(**{NAMES[2]: "far"}), "number for each"),
        (observation(agentview=np.zeros((32, 32), np.uint8)), "shape"),
        (observation(task="fail"), "failed"),
        (dumps(observation(task=b"")), "holds a bytes"),
        (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "not a pickled LeRobot TimedObservation"),
    ],
    ids=range(5),
)
def test_what_is_wrong_is_answered_and_the_next_request_works(sent: Any, words: str) -> None:
    def ask() -> None:
        robot.send(sent)
        robot.actions()

    with running(TellingActor(), settings()) as port, client(port) as robot:
        robot.begin()
        _, why = refused(ask)
        robot.send(observation(9, pixel=3, must_go=True))
        assert robot.actions()[0].action[2] == 3

    assert words in why


def test_the_order_of_requests_is_said() -> None:
    with running(TellingActor(), settings()) as port, client(port) as robot:
        assert "call Ready first" in refused(robot.actions)[1]
        robot.ask("Ready")
        assert "SendPolicyInstructions first" in refused(lambda: robot.send(observation()))[1]


def test_ready_begins_an_episode_and_clients_have_episodes_of_their_own() -> None:
    def asked(robot: Client, step: int) -> float:
        robot.send(observation(step, must_go=True))
        return float(robot.actions()[0].action[1])

    with running(TellingActor(), settings()) as port, client(port) as one, client(port) as other:
        one.begin()
        other.begin()
        told = [asked(one, 0), asked(one, 1), asked(other, 0)]
        one.begin()
        told.append(asked(one, 0))

    assert told == [1, 2, 1, 1]


def test_the_key_is_asked_for() -> None:
    with running(TellingActor(), settings(access=Access(port=0, key=KEY))) as port:
        with client(port) as robot:
            assert refused(robot.begin)[0] == grpc.StatusCode.UNAUTHENTICATED
        with client(port, KEY) as robot:
            robot.begin()


def test_more_clients_than_allowed_are_told() -> None:
    with running(TellingActor(), settings(limits=Limits(sessions=1))) as port, client(port) as one, client(port) as two:
        one.begin()
        assert "try again later" in refused(two.begin)[1]


def test_an_observation_that_is_too_large_is_refused() -> None:
    limits = Limits(message_bytes=20_000)

    with running(TellingActor(), settings(limits=limits)) as port, client(port) as robot:
        robot.begin()
        _, why = refused(lambda: robot.send(bytes(40_000), pieces=4))

    assert "20000 bytes" in why


def test_malformed_messages_hurt_nobody() -> None:
    rng = random.Random(4)
    whole = dumps(observation(must_go=True))

    with running(TellingActor(), settings()) as port, client(port) as valid, client(port) as hostile:
        valid.begin()
        hostile.begin()
        for number in range(100):
            frame = malformed(whole, rng)
            try:
                hostile.send(frame if isinstance(frame, bytes) else frame.encode())
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
            if number % 25 == 0:
                valid.send(observation(number, pixel=number, must_go=True))
                assert valid.actions()[0].action[2] == number


def test_a_port_in_use_is_named() -> None:
    with running(TellingActor(), settings()) as port, pytest.raises(InputError, match=f"port {port}|Port {port}"):  # noqa: SIM117
        with running(TellingActor(), settings(access=Access(port=port))):
            pass
