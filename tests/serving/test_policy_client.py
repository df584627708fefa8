"""The other end: the same episodes as without a server, and servers that are not Atlas's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from atlas.environments.catalog import environment_spec
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.evaluation import Evaluator, evaluate_checkpoint
from atlas.serving.access import Access
from atlas.serving.policy_client import AtlasClient
from atlas.serving.protocols.client_layout import LAYOUTS
from atlas.serving.remote_evaluation import evaluate_server
from atlas.serving.served_policy import ENTRY, ClientEntry, ServedPolicy
from atlas.serving.server import ServerSettings, load_actor
from atlas.system.array_codec import pack, unpack
from tests.policies.test_policy import HORIZON, SIZE, make_processor
from tests.rollout.test_executor import Asked, acting, play
from tests.serving.running import LOCAL, TellingActor, running, seen

CUBES = environment_spec("cubes")


def test_a_served_policy_does_in_the_world_what_it_does_without_a_server(tmp_path: Path) -> None:
    """A generative head: what it does depends on the random numbers, which follow from the episodes' seeds."""
    acting("flow").save_pretrained(tmp_path)
    episodes = plan_episodes("cubes", 2, "report", seed=5)
    evaluator = Evaluator("cubes", SIZE, workers=1)

    with closing(evaluator), running(load_actor(tmp_path, ServerSettings())) as port:
        with AtlasClient(f"ws://127.0.0.1:{port}", execute=HORIZON) as client:
            served = evaluator.run(client, episodes, title=None)
        local = evaluator.run(ChunkExecutor(load_policy(tmp_path), HORIZON), episodes, title=None)

    assert served == local


def test_a_server_is_evaluated_on_the_episodes_of_a_saved_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting("regression").save_pretrained(tmp_path)
    monkeypatch.setattr("atlas.rollout.evaluation.Evaluator", Asked)
    how: dict[str, Any] = {"episodes": 3, "seed": 5, "delay_ms": 50.0, "blend": 0.3}

    with running(load_actor(tmp_path, ServerSettings())) as port:
        served = evaluate_server(f"ws://127.0.0.1:{port}", "cubes", **how)
        asked = Asked.actions
    local = evaluate_checkpoint(tmp_path, "cubes", **how)

    assert served.outcomes == local.outcomes and served.purpose == local.purpose and asked == Asked.actions
    assert served.checkpoint == f"ws://127.0.0.1:{port}"


LATE = {"delay_ms": 50.0}  # one step


@pytest.mark.parametrize(
    ("head", "how"),
    [
        ("regression", {}),
        ("flow", {}),
        ("regression", {"execute": 1, "ensemble": 0.5}),
        ("regression", LATE),
        ("flow", LATE | {"blend": 0.3}),
        ("flow", LATE | {"blend": "guided"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
def test_its_actions_are_those_of_the_policy(head: str, how: dict[str, Any], tmp_path: Path) -> None:
    """However chunks are joined: what a guided one goes on from travels to the server."""
    acting(head).save_pretrained(tmp_path)
    seeds = {0: 11, 1: 12}
    expected = play(ChunkExecutor(load_policy(tmp_path), **({"execute": 3} | how)), seeds, rounds=3)

    with (
        running(load_actor(tmp_path, ServerSettings())) as port,
        AtlasClient(f"ws://127.0.0.1:{port}", **how) as client,
    ):
        found = play(client, seeds, rounds=3)  # type: ignore[arg-type]

    for seed, actions in expected.items():
        np.testing.assert_allclose(found[seed], actions, rtol=1e-5, atol=1e-5)


def test_who_cannot_be_guided_is_refused() -> None:
    with running(TellingActor()) as port, pytest.raises(InputError, match="does not make actions from noise"):
        AtlasClient(f"ws://127.0.0.1:{port}", blend="guided")
    with another(chunk) as url, pytest.raises(InputError, match="is not an Atlas server, and cannot"):
        AtlasClient(url, layout=LAYOUTS["libero"], spec=CUBES, blend="guided")
    with running(TellingActor()) as port, pytest.raises(InputError, match="100 ms is 2 steps at 20 Hz"):
        AtlasClient(f"ws://127.0.0.1:{port}", execute=1, delay_ms=100)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"seed": -1}, "whole number"),
        ({"rest": np.zeros((HORIZON + 1, 7), np.float32), "delay": 0}, rf"finite numbers \[1 to {HORIZON}, 7\]"),
        ({"rest": np.full((1, 7), np.nan), "delay": 0}, "finite numbers"),
        ({"rest": [[0.0] * 7], "delay": 0}, "finite numbers"),
        ({"rest": np.zeros((1, 7)), "delay": -1}, "'delay' is -1"),
        ({"rest": np.zeros((1, 7))}, "'delay' is None"),
    ],
)
def test_what_no_client_says_is_refused(entry: dict[str, Any], words: str) -> None:
    message = {"atlas": {"version": 1, **entry}}
    with pytest.raises(InputError, match=words):
        ClientEntry.from_message(message, make_processor(), follows=True)
    if "rest" in entry:
        with pytest.raises(InputError, match="cannot continue"):
            ClientEntry.from_message(message, make_processor(), follows=False)


def test_an_episode_begins_again_when_it_is_reset() -> None:
    with running(TellingActor()) as port, AtlasClient(f"ws://127.0.0.1:{port}", execute=1) as client:
        client.reset(3, seed=8)
        told = [client.plan({3: seen()})[3][0, :2].tolist() for _ in range(2)]
        client.reset(3, seed=9)
        told += [client.plan({3: seen()})[3][0, :2].tolist()]

    assert told == [[8, 1], [8, 2], [9, 1]]


def test_what_waits_together_is_seen_together() -> None:
    actor = TellingActor()

    settings = ServerSettings(access=LOCAL, batch_wait_ms=500)
    with running(actor, settings) as port, AtlasClient(f"ws://127.0.0.1:{port}") as client:
        for _ in range(3):
            client.plan({number: seen(number) for number in range(5)})

    assert actor.batches[-1] == 5


def test_three_quarters_of_the_chunk_are_executed_unless_told_otherwise() -> None:
    with running(TellingActor()) as port:
        url = f"ws://127.0.0.1:{port}"
        with (
            AtlasClient(url) as usual,
            AtlasClient(url, delay_ms=100) as late,
            AtlasClient(url, execute=HORIZON) as whole,
        ):
            asked = [len(client.plan({0: seen()})[0]) for client in (usual, late, whole)]
        assert asked == [HORIZON * 3 // 4, HORIZON - 2, HORIZON]
        with pytest.raises(InputError, match=f"sends {HORIZON} actions at a time"):
            AtlasClient(url, execute=HORIZON + 1)


def test_a_server_says_how_many_were_executed_where_its_policy_was_validated() -> None:
    message = ServedPolicy(make_processor(), HORIZON, validated_execute=2).to_message("")

    found = ServedPolicy.from_message(message)
    assert found is not None and found.validated_execute == 2
    message[ENTRY]["validated_execute"] = 0
    with pytest.raises(InputError, match="'validated_execute': 0"):
        ServedPolicy.from_message(message)


def test_what_does_not_fit_the_world_is_refused_before_it_starts() -> None:
    actor = TellingActor()
    actor.processor = actor.processor.__class__(**{**vars(actor.processor), "cameras": ("front",)})

    with running(actor) as port, pytest.raises(InputError, match="needs the cameras"):
        evaluate_server(f"ws://127.0.0.1:{port}", "cubes", episodes=1)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ws://127.0.0.1:1", "no policy server at"),
        ("http://127.0.0.1:1", "is not the address"),
        ("ws://:bad", "no address|no policy server"),
    ],
)
def test_where_nothing_answers(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        AtlasClient(url)


@pytest.mark.parametrize("protocol", ["groot", "vla-eval", "lerobot"])
def test_a_server_of_another_protocol_is_told_apart(protocol: str) -> None:
    settings = ServerSettings(protocol, LOCAL)
    with running(TellingActor(), settings) as port, pytest.raises(InputError, match="--protocol openpi"):
        AtlasClient(f"ws://127.0.0.1:{port}", timeout=0.5)


def test_a_key_that_is_missing_is_named() -> None:
    with running(TellingActor(), ServerSettings(access=Access(port=0, key="k" * 20))) as port:
        with pytest.raises(InputError, match="Authorization: Api-Key"):
            AtlasClient(f"ws://127.0.0.1:{port}")
        AtlasClient(f"ws://127.0.0.1:{port}", key="k" * 20).close()


def test_a_refusal_is_an_error_of_the_client() -> None:
    wrong = seen()
    wrong.proprio = wrong.proprio[:7]
    lacking = seen()
    del lacking.images["eye_in_hand"]

    with running(TellingActor()) as port, AtlasClient(f"ws://127.0.0.1:{port}") as client:
        with pytest.raises(InputError, match="state of 8 numbers"):
            client.plan({0: wrong})
        with pytest.raises(InputError, match=r"lacks \['eye_in_hand'\]"):
            client.plan({0: lacking})


# ---- servers of others -----------------------------------------------------------------------------------


@contextmanager
def another(answer: Callable[[Any], bytes | str], greeting: bytes | str = pack({})) -> Iterator[str]:
    """A server that speaks openpi's protocol and says nothing of itself, as openpi's own does."""

    def talk(connection: ServerConnection) -> None:
        connection.send(greeting)
        for frame in connection:
            connection.send(answer(unpack(frame)))  # type: ignore[arg-type]

    with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
    thread.join()


def test_a_server_that_ends_after_its_greeting_is_an_error_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, looked = threading.Event(), AtlasClient._probe_other_server

    def talk(connection: ServerConnection) -> None:
        connection.send(pack({}))
        connection.close()
        ended.set()

    def once_ended(client: AtlasClient, *asked: Any) -> Any:
        assert ended.wait(30)
        return looked(client, *asked)

    monkeypatch.setattr(AtlasClient, "_probe_other_server", once_ended)
    with serve(talk, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(InputError, match="has closed the connection"):
            AtlasClient(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", layout=LAYOUTS["libero"], spec=CUBES)
        server.shutdown()
    thread.join()


def chunk(message: Any) -> bytes:
    """What openpi's server answers, its state included."""
    actions = np.full((10, 7), message["observation/image"][0, 0, 0], np.float64)
    return pack({"actions": actions, "state": message["observation/state"], "policy_timing": {"infer_ms": 1.0}})


def test_a_server_of_openpis_is_asked_in_its_words() -> None:
    with another(chunk) as url, AtlasClient(url, layout=LAYOUTS["libero"], spec=CUBES, image_size=32) as client:
        client.reset(0, seed=3)
        actions = client.plan({0: seen(pixel=6)})[0]
        processor = client.processor

    assert actions.shape == (7, 7) and set(actions.reshape(-1).tolist()) == {6.0}
    assert (processor.cameras, processor.camera_size, processor.action_horizon) == (CUBES.cameras, 32, 10)


@pytest.mark.parametrize(
    ("answer", "greeting", "words"),
    [
        (lambda _: "Traceback: no such key", pack({}), "no such key"),
        (lambda _: pack({"action": 1}), pack({}), r"without 'actions' \[n, A\]"),
        (lambda _: pack({"actions": np.zeros((4, 6))}), pack({}), "7 finite numbers"),
        (lambda _: pack({"actions": np.full((4, 7), np.nan)}), pack({}), "7 finite numbers"),
        (lambda _: b"\xc1", pack({}), "no msgpack"),
        (chunk, "hello", "answers: hello"),
        (chunk, pack({"atlas": {"version": 99}}), "version 99"),
        (chunk, pack({"atlas": {"version": 1, "cameras": 3}}), "cannot be read"),
    ],
)
def test_answers_that_cannot_be_taken(answer: Callable[[Any], bytes | str], greeting: bytes | str, words: str) -> None:
    with another(answer, greeting) as url, pytest.raises(InputError, match=words):
        AtlasClient(url, layout=LAYOUTS["libero"], spec=CUBES, image_size=32)


def test_a_server_that_says_nothing_needs_a_layout_and_an_environment() -> None:
    with another(chunk) as url:
        with pytest.raises(InputError, match="--layout lerobot or libero"):
            AtlasClient(url, spec=CUBES)
        with pytest.raises(InputError, match="name the environment"):
            AtlasClient(url, layout=LAYOUTS["libero"])
        with pytest.raises(InputError, match="no key for any of the cameras"):
            AtlasClient(url, layout=LAYOUTS["droid"], spec=CUBES)
