"""How often a LeRobot dataset's files are read, until a first epoch has begun: each part of each file once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from atlas.config import load_config
from atlas.data.formats import open_configured
from atlas.data.lerobot import tables
from atlas.data.training_data import split_data
from tests.data.lerobot_folders import FIXTURES, IMAGE, VIDEO, as_version_2, copy_fixture, replace_column

TASKS, EPISODES = ("tasks.parquet", "tasks.jsonl"), ("file-000.parquet", "episodes.jsonl")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each column of each Parquet file, and each file of JSON lines, was read: {(file, column): times}."""
    found: Counter[tuple[str, str]] = Counter()

    class Counted(pq.ParquetFile):
        def __init__(self, path: Path, **options: Any) -> None:
            super().__init__(path, **options)
            self.name = f"{path.parents[1].name}/{path.name}"

        def read(self, columns: list[str], **options: Any) -> Any:
            found.update((self.name, column) for column in columns)
            return super().read(columns=columns, **options)

        def iter_batches(self, size: int, columns: list[str], **options: Any) -> Any:
            found.update((self.name, column) for column in columns)
            return super().iter_batches(size, columns=columns, **options)

    def opened(path: Path, **options: Any) -> Any:
        found[f"{path.parent.name}/{path.name}", ""] += 1
        return open(path, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counted)
    monkeypatch.setattr(tables, "open", opened, raising=False)
    return found


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize("name", [VIDEO, IMAGE])
def test_everything_is_read_once(name: str, version: str, tmp_path: Path, reads: Counter[tuple[str, str]]) -> None:
    root = FIXTURES / name if version == "v3.0" else as_version_2(FIXTURES / name, tmp_path / "set")
    reads.clear()
    config = load_config(
        {"data": {"path": str(root), "action_horizon": 2, "val_fraction": 0.3, "drop_noops": True, "image_size": 32}}
    )

    data = split_data(config, *open_configured(config.data))
    data.train.statistics()
    data.train[(0, 0)]

    assert set(reads.values()) == {1}, reads
    files = {Path(file).name for file, _ in reads}
    assert files & set(TASKS) and files & set(EPISODES) and any(column == "action" for _, column in reads)


def test_a_data_file_is_read_once_to_find_all_that_is_damaged_in_it(
    tmp_path: Path, reads: Counter[tuple[str, str]]
) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    data = root / "data/chunk-000/file-000.parquet"
    actions = np.array(pq.read_table(data).column("action").to_pylist(), np.float32)
    actions[[3, -1], 2] = np.nan
    replace_column(data, "action", actions.tolist())
    reads.clear()

    dataset, _ = open_configured(load_config({"data": {"path": str(root), "skip_damaged": True}}).data)

    assert len(dataset) == 2
    assert reads["data/file-000.parquet", "action"] == 2, reads  # and once more to keep the numbers of the others
    assert {times for (file, _), times in reads.items() if not file.startswith("data/")} == {1}
