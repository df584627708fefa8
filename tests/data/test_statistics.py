"""Statistics: exact, and computed once for a state of the data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.data.formats import open_dataset
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.statistics import ColumnStatistics, DatasetStatistics, kept_statistics
from tests.conftest import MakeLibero


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_they_are_numpys_of_all_rows(rows: int, columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)

    found = ColumnStatistics.of(values)

    exact = values.astype(np.float64)
    assert found.mean == tuple(exact.mean(0)) and found.std == tuple(exact.std(0))
    assert found.min == tuple(exact.min(0)) and found.max == tuple(exact.max(0))
    q01, q99 = np.quantile(exact, [0.01, 0.99], axis=0)
    assert found.q01 == tuple(q01) and found.q99 == tuple(q99)


def test_a_million_rows_take_seconds() -> None:
    values = np.random.default_rng(0).normal(size=(1_000_000, 7)).astype(np.float32)

    start = time.process_time()
    ColumnStatistics.of(values)

    assert time.process_time() - start < 8


def statistics(root: Path, episodes: list[int], drop_noops: bool = False) -> DatasetStatistics:
    dataset = open_dataset(root, drop_noops=drop_noops)
    (found,) = ChunkDataset(dataset, np.array(episodes), dataset.cameras, image_size=32, horizon=4).statistics()
    return found


def test_they_are_computed_once_for_a_state_of_the_data(make_libero: MakeLibero) -> None:
    root = make_libero()
    first = statistics(root, [0, 1, 3])

    with mock.patch.object(ColumnStatistics, "of", side_effect=AssertionError("computed again")):
        assert statistics(root, [0, 1, 3]) == first
        with pytest.raises(AssertionError, match="computed again"):
            statistics(root, [0, 1, 4])
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        file["data/demo_0/actions"][:, 0] *= 3
    assert statistics(root, [0, 1, 3]).action.max[0] > first.action.max[0]


def test_what_is_kept_and_is_damaged_is_made_again(make_libero: MakeLibero, own_cache: Path) -> None:
    root = make_libero()
    first = statistics(root, [0, 1])
    kept = sorted((own_cache / "statistics").iterdir())
    assert len(kept) == 2

    for text in ("[", "[1, 2]", "{}"):
        for file in kept:
            file.write_text(text)
        assert statistics(root, [0, 1]) == first


def test_a_cache_that_cannot_be_written_to_is_no_error(
    make_libero: MakeLibero, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.write_text("a file in its place")

    with caplog.at_level("INFO"):
        assert statistics(make_libero(), [0, 1]).frames == 21
    assert "Statistics are not kept for the next run" in caplog.text


@pytest.mark.parametrize("change", [lambda row: row[:-1], lambda row: [*row[:-1], float("nan")], lambda row: ["1"] * 3])
def test_kept_statistics_that_are_not_of_the_values_are_computed_again(
    own_cache: Path, change: Callable[[list[float]], list[Any]]
) -> None:
    values = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    computed = kept_statistics(values, "")
    (file,) = own_cache.rglob("*.json")
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"q01": change(kept["q01"])}))
    assert kept_statistics(values, "") == computed
    assert json.loads(file.read_text()) == kept
