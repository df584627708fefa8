"""The laws of splitting and ordering."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas.data.sampling.order import Draws, TrainOrder, validation_batches
from atlas.data.sampling.randomness import Stream, normal, sample_keys, uniform
from atlas.data.sampling.split import split_episodes
from atlas.errors import InputError

sizes = st.integers(1, 60)


def samples_of(order: TrainOrder, step: int) -> list[tuple[int, int]]:
    """(time, index) of all samples of a step."""
    return [(time, index) for time, index in order.step_samples(step).tolist()]


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

    seen = [sample for step in range(steps) for sample in samples_of(order, step)]

    for epoch in range(3):
        assert sorted(index for e, index in seen if e == epoch) == list(range(samples))


@given(samples=sizes, step=st.integers(0, 20), seed=st.integers(0, 3))
def test_ranks_and_accumulation_share_the_samples_of_one_process(samples: int, step: int, seed: int) -> None:
    one = TrainOrder(samples, seed, batch_size=12)
    several = TrainOrder(samples, seed, batch_size=2, accumulation=3, world_size=2)

    parts = [batch for rank in range(2) for batch in several.batches(rank, step, step + 1)]

    assert sorted(samples_of(one, step)) == sorted(sample for part in parts for sample in part)
    assert sorted(samples_of(several, step)) == sorted(samples_of(one, step))


def test_a_resumed_run_with_other_batches_goes_on_at_the_same_sample() -> None:
    first = TrainOrder(50, 0, batch_size=8)
    seen = [s for step in range(5) for s in samples_of(first, step)]

    resumed = TrainOrder(50, 0, batch_size=4, start=(5, first.samples_seen(5)))
    seen += [s for step in range(5, 8) for s in samples_of(resumed, step)]

    whole = TrainOrder(50, 0, batch_size=1)
    assert seen == [s for step in range(len(seen)) for s in samples_of(whole, step)]


def test_without_groups_an_epoch_is_numpys_permutation_of_seed_and_epoch() -> None:
    """What runs of earlier versions saw: they can be resumed."""
    order = TrainOrder(50, 3, batch_size=10)

    for epoch in range(3):
        seen = [s for step in range(5 * epoch, 5 * epoch + 5) for s in samples_of(order, step)]
        assert seen == [(epoch, i) for i in np.random.default_rng([3, epoch]).permutation(50).tolist()]
    assert seen == [
        s for step in range(10, 15) for s in samples_of(TrainOrder(Draws([np.arange(50)], [50]), 3, 10), step)
    ]


groups_and_counts = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=4)


def grouped(sizes_and_counts: list[tuple[int, int]]) -> Draws:
    ends = np.cumsum([size for size, _ in sizes_and_counts])
    groups = [np.arange(end - size, end) for end, (size, _) in zip(ends, sizes_and_counts, strict=True)]
    return Draws(groups, [count for _, count in sizes_and_counts])


@given(groups_and_counts, st.integers(0, 3))
def test_each_group_gives_its_number_and_none_of_it_comes_again_before_all_came(
    sizes_and_counts: list[tuple[int, int]], seed: int
) -> None:
    draws = grouped(sizes_and_counts)
    order = TrainOrder(draws, seed, batch_size=len(draws))  # a step is an epoch

    epochs = [samples_of(order, epoch) for epoch in range(4)]

    for group, count in zip(draws.groups, draws.counts, strict=True):
        mine = [[(time, i) for time, i in epoch if i in group] for epoch in epochs]
        assert [len(epoch) for epoch in mine] == [count] * 4
        drawn = [sample for epoch in mine for sample in epoch]
        for first in range(0, len(drawn) - len(group) + 1, len(group)):
            once = drawn[first : first + len(group)]
            assert sorted(i for _, i in once) == group.tolist() and {time for time, _ in once} == {first // len(group)}
    assert len({sample for epoch in epochs for sample in epoch}) == 4 * len(draws)  # each has its own random numbers


@given(groups_and_counts, st.integers(0, 6), st.integers(0, 3))
def test_ranks_and_resumed_runs_share_one_mixed_order(
    sizes_and_counts: list[tuple[int, int]], step: int, seed: int
) -> None:
    draws = grouped(sizes_and_counts)
    one = TrainOrder(draws, seed, batch_size=6)
    two = TrainOrder(draws, seed, batch_size=3, world_size=2)
    resumed = TrainOrder(draws, seed, batch_size=2, start=(step, one.samples_seen(step)))

    dealt = [next(two.batches(rank, step, step + 1)) for rank in range(2)]

    assert dealt[0] + dealt[1] == samples_of(one, step)
    assert [s for part in range(3) for s in samples_of(resumed, step + part)] == samples_of(one, step)


def test_groups_are_mixed_all_over_an_epoch() -> None:
    draws = grouped([(1000, 300), (50, 700)])

    samples, _ = draws.epoch(seed=0, epoch=0)

    for part in np.split(samples >= 1000, 5):
        assert 0.6 < part.mean() < 0.8


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 10)), min_size=1, max_size=4))
def test_shares_are_met_as_nearly_as_whole_samples_can(sizes_and_weights: list[tuple[int, float]]) -> None:
    ends = np.cumsum([size for size, _ in sizes_and_weights])
    groups = [np.arange(end - size, end) for end, (size, _) in zip(ends, sizes_and_weights, strict=True)]
    weights = np.array([weight for _, weight in sizes_and_weights])
    exact = weights / weights.sum() * ends[-1]

    if exact.min() < 1:  # may be rounded up to one, or is refused
        return
    draws = Draws.by_shares(groups, weights.tolist(), ["a group"] * len(groups))

    assert len(draws) == ends[-1] and (np.abs(np.array(draws.counts) - exact) < 1).all()


def test_a_share_of_less_than_a_sample_is_refused() -> None:
    with pytest.raises(InputError, match=r"The dataset 'b' has 0.001 of the samples.*larger weight"):
        Draws.by_shares([np.arange(10), np.arange(10, 20)], [999, 1], ["The dataset 'a'", "The dataset 'b'"])


@given(samples=st.integers(0, 40), batch=st.integers(1, 7), world=st.integers(1, 5))
def test_validation_counts_every_sample_once(samples: int, batch: int, world: int) -> None:
    shares = [validation_batches(samples, batch, rank, world) for rank in range(world)]

    assert sorted(index for share in shares for part in share for _, index in part) == list(range(samples))


def keys_of(seed: int, epochs: list[int], samples: list[int]) -> torch.Tensor:
    return sample_keys(seed, torch.tensor(epochs), torch.tensor(samples))


def test_random_numbers_depend_on_the_sample_and_not_on_its_company() -> None:
    keys = keys_of(3, [0, 0, 1], [7, 8, 7])

    together = uniform(keys, Stream.AUGMENTATION, count=4)

    assert torch.equal(together[1:2], uniform(keys_of(3, [0], [8]), Stream.AUGMENTATION, count=4))
    assert len(together.unique()) == together.numel()
    assert not torch.equal(uniform(keys, Stream.FLOW_NOISE, count=4), together)
    assert not torch.equal(uniform(keys_of(4, [0, 0, 1], [7, 8, 7]), Stream.AUGMENTATION, count=4), together)


def test_random_numbers_are_those_of_the_published_generator() -> None:
    """Counter k of key s is the number that SplitMix64 gives after k steps from the state that s was mixed to."""
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = (z + golden) & mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    key = mix((mix((mix(3) + 5) & mask) + 8) & mask)
    start = mix((mix(key) + Stream.FLOW_NOISE) & mask)
    expected = [(mix((start + k * golden) & mask) >> 11) * 2.0**-53 for k in (1, 2, 3)]

    assert uniform(keys_of(3, [5], [8]), Stream.FLOW_NOISE, count=3)[0].tolist() == expected


def test_random_numbers_are_uniform_and_normal() -> None:
    keys = keys_of(0, [0] * 20000, list(range(20000)))

    flat, bell = uniform(keys, Stream.AUGMENTATION, count=2).numpy(), normal(keys, Stream.AUGMENTATION, count=2).numpy()

    assert flat.min() >= 0 and flat.max() < 1
    np.testing.assert_allclose(flat.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(flat.var(0), 1 / 12, atol=0.003)
    np.testing.assert_allclose(bell.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(bell.var(0), 1, atol=0.03)
    np.testing.assert_allclose((bell**4).mean(0), 3, atol=0.3)
    assert abs(np.corrcoef(flat.T)[0, 1]) < 0.03 and abs(np.corrcoef(bell.T)[0, 1]) < 0.03
