"""Data workers for which there is no room are not started."""

from __future__ import annotations

import resource
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from atlas.config import Config, load_config
from atlas.data.training_data import TrainingData, open_training_data
from atlas.errors import InputError
from atlas.training.perf.worker_room import SHARED_MEMORY, settle_workers
from tests.conftest import MakeLibero

CPU, GPU = torch.device("cpu"), torch.device("cuda")  # of which only the kind is looked at
Usage = namedtuple("Usage", "total used free")


@contextmanager
def open_files_limited_to(number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = {resource.RLIMIT_NOFILE: (number, number)}
    with pytest.MonkeyPatch.context() as patch:  # a process cannot raise its own hard limit again
        patch.setattr(resource, "getrlimit", lambda what: limits[what])
        patch.setattr(resource, "setrlimit", limits.__setitem__)
        yield
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


@pytest.fixture
def config(make_libero: MakeLibero) -> Config:
    return load_config({}, [f"data.path={make_libero()}", "data.image_size=128", "data.batch_size=64"])


@pytest.fixture
def data(config: Config) -> TrainingData:
    return open_training_data(config)


def asked(config: Config, number: int | None) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"num_workers": number})})


def test_dockers_shared_memory_is_too_small_for_four_workers(
    config: Config, data: TrainingData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch of 64 samples of two images of 128 pixels is 6 MiB, and ten are on their way from each worker."""
    used = shutil.disk_usage

    def in_docker(path: Path) -> object:
        return Usage(64 * 2**20, 0, 64 * 2**20) if path == SHARED_MEMORY else used(path)

    assert settle_workers(asked(config, 1), data, CPU, ranks=1).data.num_workers == 1
    monkeypatch.setattr(shutil, "disk_usage", in_docker)

    with pytest.raises(InputError, match=r"data\.num_workers is 4, but there is room for 0\. .*64 MiB.*--shm-size"):
        settle_workers(asked(config, 4), data, CPU, ranks=1)
    assert settle_workers(asked(config, 0), data, GPU, ranks=8).data.num_workers == 0
    assert settle_workers(asked(config, None), data, GPU, ranks=1).data.num_workers == 0
    assert "0 data workers instead of 4" in caplog.text and "--shm-size" in caplog.text
    smaller = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 16})})
    assert settle_workers(asked(smaller, None), data, GPU, ranks=1).data.num_workers == 3
    assert settle_workers(asked(smaller, None), data, GPU, ranks=2).data.num_workers == 1


def test_few_open_files_are_too_few_for_workers(config: Config, data: TrainingData) -> None:
    with open_files_limited_to(24), pytest.raises(InputError, match=r"room for 0\. .*24 are allowed \(ulimit -n\)"):
        settle_workers(asked(config, 2), data, CPU, ranks=1)


def test_the_limit_of_open_files_is_raised_to_what_is_allowed(config: Config, data: TrainingData) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 512:
        pytest.skip(f"at most {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        assert settle_workers(asked(config, 1), data, CPU, ranks=1).data.num_workers == 1
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
