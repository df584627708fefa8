"""`data.batch_size: auto`: the search, and the trial, with bytes that autograd keeps in place of a GPU's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.checkpoints.contents import random_state
from atlas.config import load_config
from atlas.data.formats import open_dataset
from atlas.data.sampling.chunks import ChunkDataset
from atlas.errors import InputError
from atlas.training.perf import batch_size
from atlas.training.perf.batch_size import Trial, check_batch_size, find_batch_size, largest_batch
from atlas.training.perf.memory_estimate import OutOfMemory
from tests.conftest import MakeLibero
from tests.policies.test_policy import HORIZON, SIZE, make_policy
from tests.training.ranks import run_ranks

Data = Callable[..., ChunkDataset]
FULL = torch.OutOfMemoryError("CUDA out of memory.")
AUTO = ["data.batch_size=auto", "training.ema_decay=0.9", f"data.image_size={SIZE}"]


@pytest.fixture
def data_of(make_libero: MakeLibero) -> Data:
    def make(episodes: int = 10) -> ChunkDataset:
        dataset = open_dataset(make_libero({"open the drawer": [20] * episodes}))
        return ChunkDataset(dataset, torch.arange(episodes).numpy(), ["agentview", "eye_in_hand"], SIZE, HORIZON)

    return make


@contextmanager
def limited(megabytes: float) -> Iterator[None]:
    """A memory for what autograd keeps for the backward pass, instead of a GPU's."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        if kept > megabytes * 1e6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return tensor

    def give_back(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept -= tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, give_back):
        yield


# ---- the search --------------------------------------------------------------------------------------------


@given(limit=st.integers(0, 5000), most=st.integers(1, 5000))
@settings(max_examples=500, deadline=None)
def test_the_search_finds_the_largest_good_size(limit: int, most: int) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= limit

    found = largest_batch(fits, most)

    bound = min(limit, most)
    power = 1 << (bound.bit_length() - 1) if bound else 0
    grain = max(8, power // 8)
    assert found == (power + (bound - power) // grain * grain if power >= 8 else power)
    assert all(size <= most for size in asked)
    assert len(asked) == len(set(asked)) <= 18
    refused = [size for size in asked if size > limit]
    assert all(earlier > later for earlier, later in pairwise(refused))


@pytest.mark.parametrize(
    ("limit", "most", "found"),
    [(0, 9, 0), (1, 9, 1), (7, 9, 4), (8, 9, 8), (31, 99, 24), (100, 40, 40), (100, 5, 4), (500, 9999, 480)],
)
def test_sizes_are_rounded_down(limit: int, most: int, found: int) -> None:
    assert largest_batch(lambda size: size <= limit, most) == found


# ---- the trial ---------------------------------------------------------------------------------------------


def test_the_largest_batch_is_found_by_whole_training_steps(
    data_of: Data, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, policy, data = load_config({}, AUTO), make_policy("vggt-keypoints"), data_of()
    train = Trial.train
    sizes: dict[int, bool] = {}

    def train_within_limit(trial: Trial, size: int) -> None:
        sizes[size] = False
        with limited(7):
            train(trial, size)
        sizes[size] = True

    monkeypatch.setattr(Trial, "train", train_within_limit)
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    randomness = random_state()
    caplog.set_level(logging.INFO)

    found = find_batch_size(config, policy, data, Accelerator(cpu=True))

    assert sizes[found] and not sizes[min(size for size in sizes if size > found)]
    assert found >= 8 and found % 8 == 0 and found < len(data)
    assert find_batch_size(config, policy, data, Accelerator(cpu=True)) == found
    assert f"data.batch_size: auto is {found} samples per process" in caplog.text
    assert all(torch.equal(weights[name], value) for name, value in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())
    now = random_state()
    assert torch.equal(now["torch"], randomness["torch"])


@pytest.mark.slow
def test_recomputing_makes_room_for_larger_batches(data_of: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    data, train = data_of(), Trial.train

    def train_within_limit(trial: Trial, size: int) -> None:
        with limited(7):
            train(trial, size)

    monkeypatch.setattr(Trial, "train", train_within_limit)

    plain, recomputed = (
        find_batch_size(
            load_config({}, [*AUTO, f"training.activation_checkpointing={setting}"]),
            make_policy("vggt-keypoints"),
            data,
            Accelerator(cpu=True),
        )
        for setting in ("false", "true")
    )

    assert recomputed > plain


def test_no_batch_is_larger_than_the_dataset_can_fill(data_of: Data, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config({}, [*AUTO, "training.gradient_accumulation_steps=3"])
    caplog.set_level(logging.INFO)

    found = find_batch_size(config, make_policy(), data_of(episodes=3), Accelerator(cpu=True))

    assert found == 16  # 60 samples in 3 parts a step, rounded down
    assert "as many as there are; 1.2 steps are an epoch" in caplog.text


def test_the_peak_that_is_logged_is_not_the_trials(data_of: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(batch_size, "_forget_peak", lambda _: done.append("forgotten"))
    monkeypatch.setattr(Trial, "train", lambda _, size: done.append("trained") or _fail_above(size, 1, FULL))

    find_batch_size(load_config({}, AUTO), make_policy(), data_of(), Accelerator(cpu=True))

    assert done[-1] == "forgotten" and "trained" in done


def test_an_error_that_is_not_of_memory_is_not_a_size(data_of: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "train", lambda _, size: _fail_above(size, 0, RuntimeError("CUDA error: misaligned")))

    with pytest.raises(RuntimeError, match="misaligned"):
        find_batch_size(load_config({}, AUTO), make_policy(), data_of(), Accelerator(cpu=True))


def test_where_nothing_fits_the_message_says_why(data_of: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. And so on.")

    for step in ("train", "__init__"):  # with the smallest batch, or with the weights alone
        with monkeypatch.context() as patch:
            patch.setattr(Trial, step, fail)
            with pytest.raises(OutOfMemory, match=r"3\.00 GiB more were asked for") as raised:
                find_batch_size(load_config({}, AUTO), make_policy(), data_of(), Accelerator(cpu=True))
    assert "data.batch_size is 1" in str(raised.value) and "gradient_accumulation" not in str(raised.value)


def _find_with_other_limits(files: Path) -> int:
    data_set = open_dataset(files)
    data = ChunkDataset(data_set, torch.arange(len(data_set)).numpy(), ["agentview", "eye_in_hand"], SIZE, HORIZON)
    accelerator = Accelerator(cpu=True)
    if accelerator.process_index:
        limit, error = 40, torch.OutOfMemoryError("CUDA out of memory.")
    else:  # a library that has memory of its own
        limit, error = 19, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    batch_size.Trial.train = lambda _, size: _fail_above(size, limit, error)  # type: ignore[method-assign]
    return find_batch_size(load_config({}, AUTO), make_policy(), data, accelerator)


def _fail_above(size: int, limit: int, error: RuntimeError) -> None:
    if size > limit:
        raise error


def test_all_processes_take_what_fits_on_each(make_libero: MakeLibero, tmp_path: Path) -> None:
    files = make_libero({"open the drawer": [20] * 10})

    assert run_ranks(2, tmp_path / "ranks", _find_with_other_limits, files) == [16, 16]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_memory_is_filled_and_given_back(data_of: Data) -> None:
    device = torch.device("cuda", 0)
    accelerator, data = Accelerator(), data_of(episodes=40)
    before = torch.cuda.memory_allocated(device)
    vision = ["model.vision={name: vggt, stem: patch, patch_size: 4, embed_dim: 512, num_heads: 8, depth: 8}"]
    config, policy = load_config({}, [*AUTO, *vision]), make_policy("vggt-conv", *vision)
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total, device)  # 2 GiB, of whatever there is
    try:
        found = find_batch_size(config, policy, data, accelerator)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)

    assert 0 < found < len(data)
    assert torch.cuda.memory_allocated(device) == before


# ---- what is refused ---------------------------------------------------------------------------------------


def test_a_size_is_not_looked_for_on_cpus_nor_for_a_spread_policy() -> None:
    with pytest.raises(InputError, match=r"data.batch_size is 'auto'.*training runs on CPUs.*give a number"):
        check_batch_size(load_config({}, AUTO), gpu=False)
    with pytest.raises(InputError, match=r"distributed.strategy is 'fsdp'.*give a number, or use the strategy 'ddp'"):
        check_batch_size(load_config({}, [*AUTO, "distributed.strategy=fsdp"]), gpu=True)
    check_batch_size(load_config({}, AUTO), gpu=True)
    check_batch_size(load_config({}, ["distributed.strategy=fsdp"]), gpu=False)
