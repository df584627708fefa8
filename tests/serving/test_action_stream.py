"""A robot goes on while it asks: which action it has at which step, when answers are late, and when too late."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import pytest

from atlas.errors import InputError
from atlas.rollout.chunk_timeline import RunningChunk
from atlas.serving.action_stream import ActionStream
from atlas.serving.policy_client import AtlasClient
from atlas.types import Observation
from tests.policies.test_policy import HORIZON
from tests.serving.running import TellingActor, running, seen


class HeldActor:
    """Its n-th chunk of four says [n, the place, the pixel it has seen]; after the first it answers when it is let."""

    processor = None

    def __init__(self) -> None:
        self.asked, self.seeds = 0, []
        self.let = threading.Semaphore(1)
        self.answered = threading.Semaphore(0)

    def reset(self, episode: int, seed: int) -> None:
        self.seeds.append(seed)

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        assert self.let.acquire(timeout=20)
        chunks = {}
        for number, observation in observations.items():
            chunk = np.zeros((4, 3), np.float32)
            chunk[:, 0], chunk[:, 1], chunk[:, 2] = self.asked, range(4), observation.images["agentview"][0, 0, 0]
            chunks[number] = chunk
        self.asked += 1
        self.answered.release()
        return chunks

    def answer(self, stream: ActionStream) -> None:
        """Let it, and wait until the stream has it."""
        self.let.release()
        assert stream._pending is not None
        stream._pending.exception(timeout=20)


def steps(stream: ActionStream, first: int, count: int) -> list[list[float]]:
    return [stream.step(seen(pixel=first + i))[:2].tolist() for i in range(count)]


def test_the_last_chunk_goes_on_and_the_new_one_begins_where_it_is_not_over() -> None:
    actor = HeldActor()

    with ActionStream(actor) as stream:
        told = steps(stream, 0, 3)  # the second is asked for at the third step, with two left
        actor.answer(stream)
        told += [stream.step(seen(pixel=3)).tolist()]
        actor.let.release()

    assert told == [[0, 0], [0, 1], [0, 2], [1, 1, 2]]
    assert stream.delays == [1] and stream.waits == 0 and actor.seeds == [0]


def test_where_nothing_is_left_it_waits() -> None:
    actor = HeldActor()

    with ActionStream(actor, ask_at=1) as stream:
        told = steps(stream, 0, 4)
        threading.Timer(0.05, actor.let.release).start()
        told += steps(stream, 4, 1)
        actor.let.release(5)

    assert told == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 1]]
    assert stream.waits == 1 and stream.delays == [1]


def test_chunks_are_blended() -> None:
    actor = HeldActor()

    with ActionStream(actor, blend=0.5) as stream:
        told = steps(stream, 0, 3)
        actor.answer(stream)
        told += steps(stream, 3, 1)
        actor.let.release(5)

    assert told[-1] == [0.5, (3 + 1) / 2]


class FollowingHeldActor(HeldActor):
    """Keeps what it is told to go on from."""

    follows = True

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[list[list[float]], int]] = []

    def plan_following(
        self, observations: Mapping[int, Observation], running: Mapping[int, RunningChunk]
    ) -> dict[int, np.ndarray]:
        self.told += [(chunk.rest[:, :2].tolist(), chunk.delay) for chunk in running.values()]
        return self.plan(observations)


def test_a_guided_actor_is_told_what_is_left_and_how_late_it_was() -> None:
    actor = FollowingHeldActor()

    with ActionStream(actor, blend="guided") as stream:
        for _ in range(2):
            steps(stream, 0, 3)
            actor.answer(stream)
        actor.let.release(5)

    assert actor.told == [([[0, 2], [0, 3]], 0), ([[1, 2], [1, 3]], 1)]
    with pytest.raises(InputError, match=r"blend is guided.*a weight instead"):
        ActionStream(HeldActor(), blend="guided")


def test_an_episode_begins_again() -> None:
    actor = HeldActor()
    actor.let.release(20)

    with ActionStream(actor, seed=4) as stream:
        steps(stream, 0, 3)
        stream.reset(seed=5)
        told = stream.step(seen())[1]

    assert told == 0 and actor.seeds == [4, 5] and stream.delays == []


def test_what_fails_is_said() -> None:
    with running(TellingActor()) as port, AtlasClient(f"ws://127.0.0.1:{port}", execute=HORIZON) as client:
        stream = ActionStream(client)
        with pytest.raises(InputError, match="failed"):
            stream.step(seen(instruction="fail"))
        stream.close()
    with pytest.raises(InputError, match="at least 1"):
        ActionStream(HeldActor(), ask_at=0)


def test_a_server_that_takes_longer_than_a_step_does_not_stop_the_robot() -> None:
    actor = TellingActor(seconds=0.02)

    with running(actor) as port, AtlasClient(f"ws://127.0.0.1:{port}", execute=HORIZON) as client:
        stream = ActionStream(client)
        actions = [stream.step(seen()) for _ in range(20)]
        stream.close()

    assert all(action.shape == (7,) for action in actions)
    asked = [int(action[1]) for action in actions]
    assert asked == sorted(asked) and asked[-1] > 3
