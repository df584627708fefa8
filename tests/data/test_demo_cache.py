"""The numbers of HDF5 files with many demos are cached: they stay the same, and are read again after changes."""

from __future__ import annotations

import logging
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest

from atlas.data.caches import demo_cache
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.errors import InputError
from atlas.system.process_control import pool
from tests.conftest import MakeLibero
from tests.data.hdf5_files import as_robomimic

TASKS = {"open it": [6] * 21, "close it": [5] * 22}


def assert_same(one: EpisodeDataset, other: EpisodeDataset) -> None:
    assert one.tasks == other.tasks and one.cameras == other.cameras and one.fingerprint() == other.fingerprint()
    for name in ("lengths", "task_of"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for mine, theirs in zip(one.numbers(), other.numbers(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(*(d.episode(30).images("agentview", [2]) for d in (one, other)))


@pytest.mark.parametrize("robomimic", [False, True])
def test_many_demos_are_read_once(make_libero: MakeLibero, robomimic: bool) -> None:
    root, instruction = make_libero(TASKS), "lift it" if robomimic else None
    root = as_robomimic(root) if robomimic else root
    first = open_dataset(root, instruction=instruction)
    moving = open_dataset(root, instruction=instruction, drop_noops=True)

    with mock.patch.object(demo_cache, "read_demo", side_effect=AssertionError("read again")):
        assert_same(open_dataset(root, instruction=instruction), first)
        assert_same(open_dataset(root, instruction=instruction, drop_noops=True), moving)


def test_a_file_that_has_changed_is_read_again(make_libero: MakeLibero) -> None:
    root = make_libero(TASKS)
    before = open_dataset(root).episode(1).actions
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        file["data/demo_1/actions"][2] = 0.5

    assert (open_dataset(root).episode(1).actions != before).any(axis=1).tolist() == [False, False, True] + 3 * [False]


def test_a_damaged_file_is_never_kept(make_libero: MakeLibero, own_cache: Path) -> None:
    root = make_libero({"open it": [6] * 21})
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        file["data/demo_20/actions"][2] = np.nan

    for _ in range(2):
        with pytest.raises(InputError, match="demo_20/actions holds values that are not finite"):
            open_dataset(root)
        assert len(open_dataset(root, skip_damaged=True)) == 20
    assert not list(own_cache.glob("hdf5/*"))


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_what_is_kept_and_is_damaged_is_read_again(make_libero: MakeLibero, own_cache: Path, keep: float) -> None:
    root = make_libero(TASKS)
    first = open_dataset(root)
    for file in own_cache.glob("hdf5/*.npz"):
        file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])

    assert_same(open_dataset(root), first)


def test_a_cache_that_cannot_be_written_to_is_no_error(
    make_libero: MakeLibero, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.write_text("a file in its place")

    with caplog.at_level(logging.INFO):
        assert len(open_dataset(make_libero(TASKS))) == 43
    assert "are not kept" in caplog.text


def test_many_files_are_read_in_parallel(
    make_libero: MakeLibero, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    root = make_libero(TASKS)
    alone = open_dataset(root)
    for file in own_cache.glob("hdf5/*"):
        file.unlink()
    monkeypatch.setattr(demo_cache, "_MANY", 1)
    monkeypatch.setattr(pool, "available_cores", lambda: 2)

    with mock.patch.object(demo_cache, "read_demo", side_effect=AssertionError("read in this process")):
        assert_same(open_dataset(root), alone)
