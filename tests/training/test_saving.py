"""Checkpoints written in the background: the same bytes, one at a time, and training that outlives a full disk."""

from __future__ import annotations

import logging
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from atlas.checkpoints import Checkpoints, verify
from atlas.checkpoints.background_writer import BackgroundWriter
from atlas.checkpoints.contents import TrainingState
from atlas.checkpoints.host_memory import HostMemory
from atlas.checkpoints.run_folder import Retention
from atlas.policies.base import load_policy
from tests import warm
from tests.training.written import Files, Training, small, step_in


def make_writer(run_dir: Path, last_n: int = 2) -> tuple[BackgroundWriter, Checkpoints]:
    checkpoints = Checkpoints(run_dir, Retention(last_n))
    return BackgroundWriter(checkpoints), checkpoints


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@dataclass(frozen=True)
class Slow(Files):
    """Is written when `may_go_on` says so."""

    state: TrainingState
    may_go_on: threading.Event = field(default_factory=threading.Event)

    def write(self, folder: Path) -> None:
        assert self.may_go_on.wait(60)
        super().write(folder)


# ---- what is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("averaged", [False, True])
def test_in_the_background_the_same_bytes_are_written(tmp_path: Path, averaged: bool) -> None:
    training, memory = Training(averaged), HostMemory()
    now = training.at(3)
    writer, checkpoints = make_writer(tmp_path / "background")

    expected = Checkpoints(tmp_path / "waiting", Retention(2)).write(now)
    for step in (1, 2):  # the memory has been used before
        writer.begin(training.at(step).copied(memory))
        writer.wait()
    writer.begin(training.at(3).copied(memory))
    training.at(9)  # training goes on meanwhile
    writer.wait()

    assert contents(checkpoints.path(3)) == contents(expected)


def test_a_policy_saved_in_the_background_loads(tmp_path: Path) -> None:
    training = Training(averaged=True)
    writer, checkpoints = make_writer(tmp_path)

    writer.begin(training.at(5).copied(HostMemory()))
    writer.wait()

    loaded = load_policy(checkpoints.root / "latest").state_dict()
    assert step_in(checkpoints.path(5)) == 5
    for name, value in training.judged.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a CUDA GPU")
def test_a_copy_from_the_gpu_is_complete_when_it_is_there() -> None:
    on_gpu = [torch.full((1 << 22,), float(i), device="cuda") for i in range(8)]
    memory = HostMemory()

    for _ in range(2):
        copies = memory.copy(on_gpu)
        assert all(copy.is_pinned() and bool((copy == i).all()) for i, copy in enumerate(copies))


def test_a_copy_has_memory_of_its_own_that_serves_the_next_one_too() -> None:
    memory = HostMemory()
    large = torch.rand(300, 300)
    value = {"a": [torch.arange(6.0).view(2, 3).t(), (torch.tensor(7), 3)], 5: large, "turned": large.t(), "none": None}

    copy = memory.copy(value)
    (turned, (number, three)), places = copy["a"], [copy[5].data_ptr(), copy["turned"].data_ptr()]
    assert torch.equal(turned, value["a"][0]) and (number, three) == (7, 3) and copy["none"] is None
    assert torch.equal(copy[5], large) and torch.equal(copy["turned"], large.t())
    large.zero_()
    assert copy[5].any() and copy["turned"].any()
    again = memory.copy(value)
    assert [again[5].data_ptr(), again["turned"].data_ptr()] == places and not again[5].any()


def test_memory_fits_itself_to_what_is_to_be_copied() -> None:
    memory = HostMemory()
    for value in (
        [torch.ones(5, dtype=torch.bfloat16), torch.ones(1 << 16)],
        [torch.zeros(1 << 16)],
        [],
        [torch.ones(4)],
    ):
        copies = memory.copy(value)
        assert len(copies) == len(value)
        for copy, tensor in zip(copies, value, strict=True):
            assert torch.equal(copy, tensor) and copy.dtype == tensor.dtype and copy.data_ptr() != tensor.data_ptr()


# ---- when it is written ----------------------------------------------------------------------------------


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_waits_for_it(tmp_path: Path) -> None:
    writer, checkpoints = make_writer(tmp_path)
    slow, written = Slow(TrainingState(1, 8, 1)), []

    writer.begin(slow, written.append)
    assert not writer.wait(seconds=0.05) and not written and not checkpoints.steps()
    threading.Timer(0.2, slow.may_go_on.set).start()
    writer.begin(small(2), written.append)

    assert written[0] == checkpoints.path(1)  # complete before the second was begun
    assert writer.wait() and written == [checkpoints.path(1), checkpoints.path(2)]


def test_what_comes_after_is_told_of_a_checkpoint_that_is_complete_and_linked(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Retention(last_n=1))
    seen: list[tuple[str, list[int]]] = []
    writer = BackgroundWriter(checkpoints, before=lambda: seen.append(("before", checkpoints.steps())))

    def look(path: Path) -> None:
        verify(path)
        seen.append(((checkpoints.root / "latest").resolve().name, checkpoints.steps()))

    for step in (1, 2):
        writer.begin(small(step), look)
    writer.wait()

    assert seen == [("before", []), ("step_00000001", [1]), ("before", [1]), ("step_00000002", [2])]


def test_an_error_that_is_not_the_disks_is_raised_where_training_sees_it(tmp_path: Path) -> None:
    writer, checkpoints = make_writer(tmp_path)

    def refuse(_: Path) -> None:
        raise KeyError("a mistake in the program")

    writer.begin(small(1), refuse)
    with pytest.raises(KeyError, match="a mistake"):
        writer.begin(small(2))
    writer.begin(small(3))  # and only once
    writer.wait()
    assert checkpoints.steps() == [1, 3] and not writer.failed


# ---- a disk that is full ---------------------------------------------------------------------------------


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a disk with little room, no file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_the_old_checkpoint_stays_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training, memory = Training(), HostMemory()
    writer, checkpoints = make_writer(tmp_path, last_n=1)
    writer.begin(training.at(1, best_step=1).copied(memory))
    writer.wait()
    told: list[Path] = []

    with files_up_to(20_000):  # the weights have more
        writer.begin(training.at(2, best_step=2).copied(memory), told.append)
        writer.wait()

    assert checkpoints.steps() == [1] and not told
    assert step_in(checkpoints.root / "latest") == step_in(checkpoints.root / "best") == 1
    assert not list(checkpoints.root.glob(".*"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and writer.failed[0] in record.getMessage()
    for words in (
        "step 2",
        "File too large",
        "model.safetensors",
        "takes 0.5 MB",
        "are free",
        "the one of step 1 is still there",
    ):
        assert words in writer.failed[0]
    writer.begin(training.at(3, best_step=3).copied(memory), told.append)
    writer.wait()
    assert checkpoints.steps() == [3] == [int(path.name[-1]) for path in told] and len(writer.failed) == 1


def test_on_a_disk_that_is_really_full_too(tmp_path: Path, full_disk: Path) -> None:
    writer, checkpoints = make_writer(full_disk / "run", last_n=1)
    writer.begin(Training().at(1))
    writer.wait()
    (full_disk / "other data").write_bytes(bytes(shutil.disk_usage(full_disk).free - 50_000))

    writer.begin(Training().at(2))
    writer.wait()

    assert "No space left on device" in writer.failed[0] and "MB are free in" in writer.failed[0]
    verify(checkpoints.root / "latest")
    assert checkpoints.steps() == [1] and not list(checkpoints.root.glob(".*"))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


# ---- the process ends ------------------------------------------------------------------------------------

_DYING = """
import sys, threading, time
from pathlib import Path
from atlas.checkpoints import background_writer
from atlas.checkpoints import Checkpoints
from atlas.checkpoints.run_folder import Retention
from tests import warm
from tests.training.written import small

background_writer._SECONDS_AT_EXIT = float(sys.argv[2])
writer = background_writer.BackgroundWriter(Checkpoints(Path(sys.argv[1]), Retention(2)))
writer.begin(small(1), lambda path: (time.sleep(0.3), print("then"), time.sleep(float(sys.argv[3]))))
raise RuntimeError("training failed")
"""


def test_an_error_ends_the_process_after_the_write_that_was_begun(tmp_path: Path) -> None:
    done = die(tmp_path, seconds_at_exit=60, then_seconds=0)

    assert done.returncode == 1 and "training failed" in done.stderr and "then" in done.stdout
    verify(tmp_path / "checkpoints" / "latest")


def test_a_write_that_hangs_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    began = time.monotonic()

    done = die(tmp_path, seconds_at_exit=1, then_seconds=1000)

    assert done.returncode == 1 and "training failed" in done.stderr and time.monotonic() - began < 200


def die(run_dir: Path, seconds_at_exit: float, then_seconds: float) -> subprocess.CompletedProcess[str]:
    arguments = [str(run_dir), str(seconds_at_exit), str(then_seconds)]
    return warm.run("-c", _DYING, *arguments, timeout=250)
