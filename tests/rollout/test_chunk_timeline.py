"""Chunks that are late: what is executed meanwhile, and what of them is over when they are there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas.errors import InputError
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.chunk_timeline import ChunkTimeline, check_execution, delay_steps, usual_execute
from atlas.types import Batch
from tests.policies.test_policy import HORIZON, make_policy
from tests.rollout.test_executor import STILL, CountingPolicy


def told(executor: ChunkExecutor, plans: int) -> list[list[list[float]]]:
    """Of each plan: [the chunk, the place in it] of its actions."""
    return [executor.plan({0: STILL})[0][:, :2].tolist() for _ in range(plans)]


def test_without_a_delay_a_chunk_is_executed_from_its_beginning() -> None:
    assert told(ChunkExecutor(CountingPolicy(), 2), 2) == [[[0, 0], [0, 1]], [[1, 0], [1, 1]]]


def test_a_late_chunk_is_executed_from_where_it_is_not_over_and_the_last_one_until_then() -> None:
    """20 Hz: 60 ms are two steps. The first chunk is waited for."""
    executor = ChunkExecutor(CountingPolicy(), 2, delay_ms=60)

    assert told(executor, 3) == [[[0, 0], [0, 1]], [[0, 2], [0, 3]], [[1, 2], [1, 3]]]


def test_one_step_late() -> None:
    executor = ChunkExecutor(CountingPolicy(), 3, delay_ms=50)

    assert told(executor, 2) == [[[0, 0], [0, 1], [0, 2]], [[0, 3], [1, 1], [1, 2]]]
    executor.reset(0, seed=0)
    assert told(executor, 1) == [[[2, 0], [2, 1], [2, 2]]]


def test_chunks_are_blended_where_they_overlap() -> None:
    executor = ChunkExecutor(CountingPolicy(), 2, blend=0.25)

    first, second = told(executor, 2)

    assert first == [[0, 0], [0, 1]]
    assert second == [[0.75, 0.25 * 2 + 0.75 * 0], [0.75, 0.25 * 3 + 0.75 * 1]]


class FollowingPolicy(CountingPolicy):
    """Keeps what it is told to go on from."""

    follows = True

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[list[list[float]], int]] = []

    def sample_following(self, batch: Batch, previous: torch.Tensor, delay: int) -> torch.Tensor:
        self.told += [(rest[:, :2].tolist(), delay) for rest in previous]
        return self.sample(batch)


def test_a_guided_policy_is_told_what_is_left_of_its_last_chunk_and_how_late_it_is() -> None:
    policy = FollowingPolicy()
    executor = ChunkExecutor(policy, 2, delay_ms=50, blend="guided")

    assert told(executor, 3) == [[[0, 0], [0, 1]], [[0, 2], [1, 1]], [[1, 2], [2, 1]]]

    left = [[[number, place] for place in range(2, HORIZON)] for number in range(2)]
    assert policy.told == [(left[0], 1), (left[1], 1)]


def test_a_policy_that_cannot_be_guided_is_refused() -> None:
    with pytest.raises(InputError, match=r"blend is guided.*of the type modular, does not.*a weight"):
        ChunkExecutor(make_policy(), 2, blend="guided")


@pytest.mark.parametrize(("ms", "hz", "steps"), [(0, 20, 0), (50, 20, 1), (51, 20, 2), (200, 20, 4), (33.3, 30, 1)])
def test_a_delay_in_steps(ms: float, hz: float, steps: int) -> None:
    assert delay_steps(ms, hz) == steps


def test_a_timeline_keeps_what_the_older_chunk_says_beyond_the_newer() -> None:
    timeline = ChunkTimeline(blend=0.5)
    timeline.add(np.array([[0.0], [1], [2], [3]]), start=0, now=0)
    timeline.add(np.array([[10.0], [20]]), start=1, now=2)

    assert timeline.take(2, 9).tolist() == [[11.0], [3.0]] and timeline.end == 4  # type: ignore[union-attr]
    assert timeline.take(4, 2).tolist() == []  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"execute": HORIZON + 1}, f"from 1 to {HORIZON}"),
        ({"delay_ms": -1.0}, "negative"),
        ({"blend": 1.0}, "below 1"),
        ({"ensemble": 0.1, "delay_ms": 50.0}, "leave it out"),
        ({"execute": 1, "delay_ms": 100.0}, "100 ms is 2 steps at 20 Hz"),
        ({"execute": HORIZON, "delay_ms": 50.0}, "leave at least as many"),
    ],
)
def test_what_cannot_be_executed_is_refused(arguments: dict[str, float], words: str) -> None:
    values = {"horizon": HORIZON, "control_hz": 20.0, "execute": 2, "ensemble": None, "delay_ms": 0.0, "blend": None}
    with pytest.raises(InputError, match=words):
        check_execution(**{**values, **arguments})  # type: ignore[arg-type]


def test_as_many_are_executed_as_where_it_was_validated_but_for_late_chunks() -> None:
    found = [usual_execute(8, 20.0, delay_ms, validated) for validated in (None, 3) for delay_ms in (0.0, 100.0, 200.0)]

    assert found == [6, 6, 4, 3, 3, 3] and usual_execute(1, 20.0, 0.0) == 1
