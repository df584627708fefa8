"""A split that is kept: episodes are identified by their content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.data.episode import Side
from atlas.data.formats import open_dataset
from atlas.data.sampling.kept_split import KeptSplit, episode_identities
from atlas.data.sampling.split import deal_new, split_dataset, split_episodes
from tests.conftest import MakeLibero

TASKS = {"open the drawer": [12] * 6, "close the drawer": [10] * 4}


def test_episodes_are_known_in_files_of_other_names_and_order(make_libero: MakeLibero) -> None:
    root = make_libero(TASKS)
    before = open_dataset(root)
    kept = KeptSplit.of(before, *split_dataset(before, 0.3, seed=0))
    identities = episode_identities(before)
    assert len(set(identities.tolist())) == len(before) and kept.change(identities) is None

    (root / "task_0_demo.hdf5").rename(root / "later_demo.hdf5")
    (root / "task_1_demo.hdf5").rename(root / "earlier_demo.hdf5")
    after = open_dataset(root)

    assert after.tasks != before.tasks and kept.change(episode_identities(after)) is None
    train, val = split_dataset(after, 0.9, seed=5, kept=kept)  # which say something of new episodes alone
    now = episode_identities(after)
    assert set(now[val]) == set(kept.validation) and set(now[train]) == set(kept.training)


def test_equal_episodes_are_told_apart_by_their_number(make_libero: MakeLibero, tmp_path: Path) -> None:
    root = make_libero(TASKS)
    (root / "twin_demo.hdf5").write_bytes((root / "task_0_demo.hdf5").read_bytes())

    identities = episode_identities(open_dataset(root))

    assert len(set(identities.tolist())) == 16


@pytest.mark.parametrize(
    ("now", "words"),
    [([1, 2, 3], None), ([1, 2, 3, 4], "1 episode of 4 is new"), ([1, 5, 6], "2 episodes of 3 are new and 2 episodes")],
)
def test_a_change_is_put_into_words(now: list[int], words: str | None) -> None:
    kept = KeptSplit(np.array([1, 2]), np.array([3]))
    change = kept.change(np.array(now))

    assert change is None if words is None else str(change).startswith(words)
    assert "none of the 3 episodes" in str(kept.change(np.array([7, 8])))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=40),
    st.floats(0.01, 0.9),
    st.integers(0, 5),
)
def test_new_episodes_are_dealt_and_old_ones_keep_their_side(
    episodes: list[tuple[int, bool]], fraction: float, seed: int
) -> None:
    """Those marked were there before, and split as they would have been alone."""
    task_of, old = (np.array(column) for column in zip(*episodes, strict=True))
    had = np.full(len(task_of), Side.UNSAID, np.int8)
    for side, numbers in zip(
        (Side.TRAINING, Side.VALIDATION), split_episodes(task_of[old], fraction, seed), strict=True
    ):
        had[np.flatnonzero(old)[numbers]] = side

    training, validation = deal_new(task_of, fraction, seed, had)

    assert sorted([*training, *validation]) == list(range(len(task_of)))
    assert (had[training] != Side.VALIDATION).all() and (had[validation] != Side.TRAINING).all()
    for task in set(task_of.tolist()):
        mine, count = task_of == task, int((task_of == task).sum())
        assert mine[training].any()
        if count >= 2 and (mine & ~old).any():
            wanted = max(1, round(count * fraction))
            assert 1 <= mine[validation].sum() <= wanted or not (had[mine] == Side.UNSAID).any()


def test_what_a_dataset_says_of_its_new_episodes_counts() -> None:
    had = np.array([Side.TRAINING, Side.VALIDATION, Side.UNSAID, Side.UNSAID], np.int8)
    said = np.array([Side.VALIDATION, Side.TRAINING, Side.VALIDATION, Side.TRAINING], np.int8)

    _, validation = deal_new(np.zeros(4, np.int64), 0.5, 0, had, said)

    assert validation.tolist() == [1, 2]
