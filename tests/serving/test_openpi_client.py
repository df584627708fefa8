"""openpi's own client against the server. It pins an older numpy, so that it is installed by itself:
pip install --no-deps openpi-client dm-tree, beside absl-py, attrs and wrapt."""

from __future__ import annotations

import numpy as np
import pytest

from tests.policies.test_policy import HORIZON
from tests.serving.running import TellingActor, libero_message, running

action_chunk_broker = pytest.importorskip(
    "openpi_client.action_chunk_broker", reason="openpi-client is not installed", exc_type=ImportError
)
websocket_client_policy = pytest.importorskip("openpi_client.websocket_client_policy", exc_type=ImportError)


def test_it_is_answered() -> None:
    with running(TellingActor()) as port:
        policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key="any")
        answers = [policy.infer(libero_message(pixel=number)) for number in (4, 5)]
        told = policy.get_server_metadata()
        policy._ws.close()

    assert [answer["actions"][0, 1:3].tolist() for answer in answers] == [[1, 4], [2, 5]]
    assert answers[1]["server_timing"]["prev_total_ms"] > 0
    assert told["atlas"]["cameras"] == ["agentview", "eye_in_hand"]


def test_its_broker_takes_the_actions_one_by_one() -> None:
    with running(TellingActor()) as port:
        policy = websocket_client_policy.WebsocketClientPolicy(f"ws://127.0.0.1:{port}")
        broker = action_chunk_broker.ActionChunkBroker(policy, HORIZON)
        steps = [broker.infer(libero_message()) for _ in range(HORIZON + 1)]
        broker.reset()
        policy._ws.close()

    assert [step["actions"][6] for step in steps] == [*range(HORIZON), 0]
    assert all(isinstance(step["actions"], np.ndarray) and step["actions"].shape == (7,) for step in steps)


def test_an_observation_that_lacks_something_is_its_error_and_the_next_works() -> None:
    lacking = libero_message()
    del lacking["prompt"]

    with running(TellingActor()) as port:
        policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port)
        with pytest.raises(RuntimeError, match="lacks 'prompt'"):
            policy.infer(lacking)
        assert len(policy.infer(libero_message())["actions"]) == HORIZON
        policy._ws.close()
