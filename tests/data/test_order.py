"""The laws of splitting and ordering."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from atlas.data.order import TrainOrder, validation_batches
from atlas.data.randomness import uniform
from atlas.data.split import split_episodes

sizes = st.integers(1, 60)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_is_disjoint_whole_and_has_every_task_on_both_sides(
    tasks: list[int], fraction: float, seed: int
) -> None:
    task_of = np.array(tasks)

    training, validation = split_episodes(task_of, fraction, seed)

    assert sorted([*training, *validation]) == list(range(len(tasks)))
    for task in set(tasks):
        assert (task_of[training] == task).any()
        if tasks.count(task) >= 2:
            assert (task_of[validation] == task).any()


def test_a_split_is_a_function_of_the_seed() -> None:
    task_of = np.arange(100) % 4

    again = [split_episodes(task_of, 0.2, seed)[1].tolist() for seed in (1, 1, 2)]

    assert again[0] == again[1] != again[2]


@given(samples=sizes, batch=st.integers(1, 9), world=st.integers(1, 4), seed=st.integers(0, 3))
def test_each_sample_comes_exactly_once_an_epoch(samples: int, batch: int, world: int, seed: int) -> None:
    order = TrainOrder(samples, seed, batch, world_size=world)
    steps = order.steps_for(epochs=3)

    seen = [sample for step in range(steps) for sample in order.step_samples(step)]

    for epoch in range(3):
        assert sorted(index for e, index in seen if e == epoch) == list(range(samples))


@given(samples=sizes, step=st.integers(0, 20), seed=st.integers(0, 3))
def test_ranks_and_accumulation_share_the_samples_of_one_process(samples: int, step: int, seed: int) -> None:
    one = TrainOrder(samples, seed, batch_size=12)
    several = TrainOrder(samples, seed, batch_size=2, accumulation=3, world_size=2)

    parts = [batch for rank in range(2) for batch in several.batches(rank, step, step + 1)]

    assert sorted(one.step_samples(step)) == sorted(sample for part in parts for sample in part)
    assert sorted(several.step_samples(step)) == sorted(one.step_samples(step))


def test_a_resumed_run_with_other_batches_goes_on_at_the_same_sample() -> None:
    first = TrainOrder(50, 0, batch_size=8)
    seen = [s for step in range(5) for s in first.step_samples(step)]

    resumed = TrainOrder(50, 0, batch_size=4, start=(5, first.samples_seen(5)))
    seen += [s for step in range(5, 8) for s in resumed.step_samples(step)]

    whole = TrainOrder(50, 0, batch_size=1)
    assert seen == [s for step in range(len(seen)) for s in whole.step_samples(step)]


@given(samples=st.integers(0, 40), batch=st.integers(1, 7), world=st.integers(1, 5))
def test_validation_counts_every_sample_once(samples: int, batch: int, world: int) -> None:
    shares = [validation_batches(samples, batch, rank, world) for rank in range(world)]

    assert sorted(index for share in shares for part in share for _, index in part) == list(range(samples))


def test_random_numbers_depend_on_the_sample_and_not_on_its_company() -> None:
    epochs, samples = np.array([0, 0, 1]), np.array([7, 8, 7])

    together = uniform(3, epochs, samples, stream=1, count=4)
    alone = uniform(3, epochs[1:2], samples[1:2], stream=1, count=4)

    np.testing.assert_array_equal(together[1:2], alone)
    assert len(np.unique(together)) == together.size
    assert not np.array_equal(uniform(3, epochs, samples, stream=2, count=4), together)


def test_random_numbers_are_uniform() -> None:
    numbers = uniform(0, np.zeros(20000, np.int64), np.arange(20000), stream=1, count=2)

    assert numbers.min() >= 0 and numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(numbers.var(0), 1 / 12, atol=0.003)
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 0.03
