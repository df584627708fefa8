"""A comparison that may stop at any episode: its error rate as simulated, its power, and when it gives up."""

from __future__ import annotations

import numpy as np
import pytest

from atlas.rollout.verdicts.sequential import ERROR_RATE, SequentialComparison


def compared(rng: np.random.Generator, first_only: float, second_only: float, most: int) -> SequentialComparison:
    """Of policies that just one of which solves these shares of episodes."""
    comparison = SequentialComparison()
    for draw in rng.random(most):
        comparison.add(draw < first_only or draw > 0.7, first_only < draw < first_only + second_only or draw > 0.7)
        if comparison.clear or comparison.hopeless(most - comparison.episodes):
            break
    return comparison


@pytest.mark.parametrize(("telling", "most"), [(0.6, 100), (0.2, 250)])
def test_equal_policies_are_called_different_in_at_most_the_stated_share_of_comparisons(
    telling: float, most: int
) -> None:
    """Though it looks after every episode."""
    rng = np.random.default_rng(0)
    called = np.mean([compared(rng, telling / 2, telling / 2, most).clear for _ in range(500)])

    assert 0.002 < called <= ERROR_RATE == 0.05


def test_a_clear_difference_is_seen_early_and_on_the_right_side() -> None:
    rng = np.random.default_rng(1)
    found = [compared(rng, 0.4, 0.05, 100) for _ in range(100)]

    assert np.mean([each.clear for each in found]) > 0.95
    assert np.mean([each.first_only > each.second_only for each in found if each.clear]) == 1
    assert np.mean([each.episodes for each in found]) < 45  # of 100


def test_what_can_no_longer_become_clear_is_given_up() -> None:
    comparison = SequentialComparison()
    for _ in range(20):
        comparison.add(True, True)

    assert comparison.evidence == pytest.approx(1.0)
    assert comparison.hopeless(6) and not comparison.hopeless(7)  # seven telling ones on one side are the least
    for _ in range(7):
        comparison.add(True, False)
    assert comparison.clear and not comparison.hopeless(0) and comparison.episodes == 27
