"""The table is as large as intended, and its good inputs are good: the refusals are due to what was spoilt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from atlas.policies.base import load_policy
from tests.bad_input import test_checkpoints, test_configs, test_feature_caches, test_flags, test_hdf5_files
from tests.bad_input.conftest import BACKBONE
from tests.bad_input.table import run_here


def test_the_table_has_many_rows_of_every_kind() -> None:
    rows = {
        "configs": len(test_configs.ROWS),
        "flags": len(test_flags.TRAIN) + len(test_flags.OTHERS),
        "HDF5 files": len(test_hdf5_files.ROWS),
        "checkpoints": len(test_checkpoints.POLICY) + len(test_checkpoints.TRAINER),
        "feature caches": len(test_feature_caches.ROWS),
    }

    assert min(rows.values()) >= 30 and sum(rows.values()) >= 180, rows


def test_the_good_inputs_are_taken(
    place: Path,
    good_data: Path,
    good_run: Path,
    good_cache: Path,
    copied: Callable[[Path], Path],
    train_on: Callable[..., Sequence[str]],
) -> None:
    """Each is let through to where training begins."""
    run_dir = copied(good_run)
    commands = (
        train_on(good_data),
        ["train", "--cpu", "--resume", str(run_dir), "training.max_steps=4"],
        ["train", "--cpu", *BACKBONE, f"data.path={good_data}", f"data.feature_cache={good_cache}"],
    )
    for command in commands:
        with mock.patch("atlas.train.run") as run:
            assert run_here(place, command) == (0, "")
        run.assert_called_once()
    load_policy(run_dir)
