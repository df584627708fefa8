"""Data workers: the same batches however they are started, and memory that does not grow."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.config import Config, load_config
from atlas.data.caches.frame_cache import fill_caches
from atlas.data.sampling.loader import make_loader
from atlas.data.sampling.order import TrainOrder
from atlas.data.training_data import TrainingData, open_training_data
from atlas.types import Batch
from tests.conftest import MakeLibero
from tests.data.lerobot_folders import FIXTURES, IMAGE, VIDEO

BATCH = 8


def config_of(**data: Any) -> Config:
    return load_config({"data": {"image_size": 32, "action_horizon": 4, **data}})


@pytest.fixture
def mixture(make_libero: MakeLibero, tmp_path: Path) -> TrainingData:
    """Of all kinds of files, with frames from a cache for none."""
    sources = [{"path": str(path)} for path in (make_libero(), FIXTURES / VIDEO)]
    sources.append({"path": str(FIXTURES / IMAGE), "weight": 2, "drop_noops": True})
    return open_training_data(config_of(datasets=sources))


@pytest.fixture
def start_method() -> Iterator[None]:
    before = multiprocessing.get_start_method()
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("start_method")
def test_workers_that_are_spawned_and_forked_give_the_same_batches(mixture: TrainingData) -> None:
    order = TrainOrder(mixture.draws, 0, BATCH)
    here = list(make_loader(mixture.train, order.batches(0, 0, 5), num_workers=0))

    for method in ("fork", "spawn"):
        multiprocessing.set_start_method(method, force=True)
        theirs = list(make_loader(mixture.train, order.batches(0, 0, 5), num_workers=2))

        for batch, expected in zip(theirs, here, strict=True):
            assert batch.instruction == expected.instruction, method
            for name in ("images", "proprio", "actions", "action_is_pad", "source", "key"):
                assert torch.equal(getattr(batch, name), getattr(expected, name)), (method, name)


@pytest.mark.usefixtures("start_method")
def test_a_signal_to_all_processes_ends_no_worker_that_is_just_starting(
    make_libero: MakeLibero, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiprocessing.set_start_method("fork", force=True)
    data = open_training_data(config_of(path=str(make_libero())))
    begin = BaseProcess._bootstrap  # type: ignore[attr-defined]

    def struck(process: BaseProcess, *arguments: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return begin(process, *arguments, **more)

    monkeypatch.setattr(BaseProcess, "_bootstrap", struck)
    order = TrainOrder(data.draws, 0, BATCH)

    assert len(list(make_loader(data.train, order.batches(0, 0, 2), num_workers=1))) == 2


def resident(pids: list[int]) -> int:
    """Bytes of memory that processes hold."""
    total = 0
    for pid in pids:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmRSS"))
    return total


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process holds")
@pytest.mark.parametrize("kind", ["video", "images", "hdf5", "frame cache"])
def test_memory_does_not_grow_over_epochs(kind: str, make_libero: MakeLibero, tmp_path: Path) -> None:
    path = {"video": FIXTURES / VIDEO, "images": FIXTURES / IMAGE}.get(kind) or make_libero()
    config = config_of(path=str(path), frame_cache=str(tmp_path / "frames") if kind == "frame cache" else None)
    if kind == "frame cache":
        plain = open_training_data(config_of(path=str(path)))
        fill_caches(tmp_path / "frames", plain.dataset, plain.cameras, 32)
    data = open_training_data(config)
    order = TrainOrder(data.draws, 0, BATCH)
    batches: Iterator[Batch] = iter(make_loader(data.train, order.batches(0, 0, order.steps_for(20)), num_workers=2))
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
    assert len(pids) == 3
    held = {}

    for step, _ in enumerate(batches, start=1):
        for epoch in (2, 20):
            if step == order.steps_for(epoch) - 2 * (epoch == 20):  # the workers end with the last batch
                gc.collect()
                held[epoch] = resident(pids)

    assert held[20] <= 1.05 * held[2], held
