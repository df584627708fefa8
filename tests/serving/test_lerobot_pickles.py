"""LeRobot's pickles are read, and what else a pickle can say is not done."""

from __future__ import annotations

import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas.errors import InputError
from atlas.serving.protocols.lerobot_pickles import TimedObservation, read_observation, read_setup, write_actions
from tests.serving.lerobot_messages import HELPERS, NAMES, dumps, loads, observation, setup


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_an_observation_is_read_whatever_protocol_it_is_pickled_in(protocol: int) -> None:
    sent = observation(
        3, pixel=9, must_go=True, extra=np.float32(0.5), wide=np.asfortranarray(np.arange(6).reshape(2, 3))
    )

    found = read_observation(dumps(sent, protocol=protocol))

    assert (found.timestep, found.timestamp, found.must_go) == (3, sent.timestamp, True)
    np.testing.assert_array_equal(found.observation["agentview"], sent.observation["agentview"])
    np.testing.assert_array_equal(found.observation["wide"], sent.observation["wide"])
    assert (
        found.observation["task"] == "go" and found.observation["extra"] == 0.5 and found.observation[NAMES[0]] == 0.5
    )


def test_the_wish_is_read() -> None:
    wish = read_setup(dumps(setup("hub/policy")))

    assert (wish.checkpoint, wish.actions, wish.state_names) == ("hub/policy", 3, tuple(NAMES))
    assert wish.cameras == {"agentview": "observation.images.agentview", "wrist": "observation.images.eye_in_hand"}


@pytest.mark.parametrize("module", [HELPERS, "lerobot.scripts.server.helpers"])
def test_what_is_written_is_what_lerobot_unpickles(module: str) -> None:
    actions = np.arange(6, dtype=np.float32).reshape(3, 2)

    found = loads(write_actions(actions, TimedObservation(5.0, 7, False, {}), 0.1, module), module)

    assert [(each.timestep, each.timestamp) for each in found] == [(7, 5.0), (8, 5.1), (9, 5.2)]
    assert [each.action.tolist() for each in found] == actions.tolist()
    assert type(found[0]).__name__ == "TimedAction"


def executed(mark: Path) -> list[bytes]:
    """Pickles that would write a file, if anything in them was called."""

    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    class Evaluates:
        def __reduce__(self) -> Any:
            return eval, (f"open({str(mark)!r}, 'w')",)

    whole = dumps(observation())
    place = whole.index(b"TimedObservation") + len(b"TimedObservation")
    command = f"touch {mark}".encode()
    return [
        dumps(observation(task=Runs())),
        dumps(observation(task=Evaluates())),
        dumps(observation(agentview=[Runs()])),
        b"(dp0\nclerobot.async_inference.helpers\nTimedObservation\ncos\nsystem\n(S'" + command + b"'\ntR.",
        b"\x80\x04clerobot.async_inference.helpers\nTimedObservation\ni" + b"os\nsystem\n.",
        whole[: place + 2] + b"cposix\nsystem\n\x8c" + bytes([len(command)]) + command + b"\x85R" + whole[place + 2 :],
        dumps(observation(task=np.array([Runs()], dtype=object))),
    ]


def test_nothing_in_a_pickle_is_called(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"

    for data in executed(mark):
        with pytest.raises(InputError):
            read_observation(data)

    assert not mark.exists()


CLASS = b"clerobot.async_inference.helpers\nTimedObservation\n"


@pytest.mark.parametrize(
    "data",
    [
        CLASS + b"}\x8c\x01aK\x01s\x86b.",  # the state of a class, as attributes to set
        CLASS + b"N}\x8c\x0c__setstate__K\x01s\x86b.",
        CLASS + b")R\x8e" + struct.pack("<Q", 2**40) + b".",  # a terabyte of bytes that are not there
        CLASS + b"\x96" + struct.pack("<Q", 2**40) + b".",
        CLASS + b"r" + struct.pack("<I", 2**32 - 1) + b".",  # the last place of a memo
        CLASS + b"0" * 5,
        CLASS + b"Q.",
        CLASS + b"\x82\x01.",
        CLASS + b"(" * 50_000 + b".",
        CLASS + b"L" + b"9" * 100_000 + b"L\n.",
        b"",
        b"\x80",
        dumps(observation())[:-40],
    ],
    ids=range(13),
)
def test_a_pickle_that_asks_for_much_is_refused_soon(data: bytes) -> None:
    begun = time.monotonic()

    with pytest.raises(InputError):
        read_observation(data)

    assert time.monotonic() - begun < 5
    assert read_observation(dumps(observation())).timestep == 0


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (observation(agentview=np.array([object()])), "names|dtype|cannot"),
        (observation(agentview=np.zeros(3, np.complex64)), "dtype"),
        (observation(task=b"bytes"), "holds a bytes"),
        (observation(task=[1]), "holds a list"),
        ({"no": "message"}, "not a pickled LeRobot TimedObservation"),
        (setup(), "not a pickled LeRobot TimedObservation"),
    ],
    ids=range(6),
)
def test_what_no_robot_sends_is_refused(sent: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_observation(dumps(sent))


@pytest.mark.parametrize(
    "change",
    [{"lerobot_features": None}, {"actions_per_chunk": 0}, {"lerobot_features": {}}, {"rename_map": 3}],
    ids=lambda change: next(iter(change)),
)
def test_a_wish_that_lacks_something_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="setup"):
        read_setup(dumps(setup(**change)))
