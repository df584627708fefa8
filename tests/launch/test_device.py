"""What a process trains on, with stand-ins for torch's view of the GPUs: the driver, the ids, the order of things."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.checkpoints.contents import random_state
from atlas.config import Config, DistributedConfig, load_config
from atlas.errors import InputError
from atlas.launch import acting_device, check_gpu_of_rank, settle_device
from atlas.prepare import prepare
from atlas.system.gpu_facts import has_bf16
from atlas.train import make_accelerator
from atlas.training.prepared_run import PreparedRun

OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update it."


class Machine:
    """A machine with eight GPUs. `asked` holds CUDA_VISIBLE_DEVICES as it was when CUDA was asked, each time."""

    def __init__(self, patch: pytest.MonkeyPatch, works: bool) -> None:
        self.asked: list[str | None] = []
        self._works = works
        patch.setattr(torch.cuda, "device_count", self.count)
        patch.setattr(torch.cuda, "is_available", self.is_available)
        patch.setattr(torch.cuda, "init", self.init)
        for name in ("CUDA_VISIBLE_DEVICES", "ATLAS_VISIBLE_DEVICES", "ATLAS_DEVICE"):
            patch.setenv(name, "")  # so that it is put back
            patch.delenv(name)

    def count(self) -> int:
        """By NVML, which needs no CUDA and knows the variable."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return 8 if visible is None else len(list(filter(None, visible.split(","))))

    def is_available(self) -> bool:
        self.asked.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return self._works and self.count() > 0

    def init(self) -> None:
        raise RuntimeError(OLD)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch, works=True)


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch, works=False)


# ---- a driver that does not work ---------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"mode": "single"}, {"gpus": 2}, {"gpu_ids": [0]}])
def test_gpus_that_torch_cannot_use_are_refused_with_its_reason(old_driver: Machine, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="The NVIDIA driver on your system is too old") as error:
        settle_device(DistributedConfig(**asked))
    assert "--cpu" in str(error.value)


@pytest.mark.parametrize("start", [prepare, make_accelerator])
def test_neither_the_preparation_nor_a_rank_falls_back_to_the_cpu(old_driver: Machine, start: Any) -> None:
    with pytest.raises(InputError, match="8 GPUs are there, but torch cannot use CUDA"):
        start(Config())


def test_a_rank_that_was_planned_for_a_gpu_takes_no_cpu(old_driver: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # the driver is gone since
    monkeypatch.setenv("ATLAS_DEVICE", "cuda")

    with pytest.raises(InputError, match="GPUs are asked for"):
        settle_device(DistributedConfig())


def test_the_cpu_is_taken_where_it_is_asked_for_or_there_is_nothing_else(
    old_driver: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settle_device(DistributedConfig(cpu=True)) == "cpu"
    assert old_driver.asked == []  # CUDA was not even asked
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert settle_device(DistributedConfig()) == "cpu"


def test_whoever_acts_takes_no_cpu_for_gpus_that_torch_cannot_use(
    old_driver: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In evaluations, servers, viewers and learning, which all ask for their device here."""
    with pytest.raises(InputError, match=r"8 GPUs are there.* driver on your system is too old.*CUDA_VISIBLE_DEVICES="):
        acting_device()
    assert acting_device(cpu=True) == torch.device("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert acting_device() == torch.device("cpu")

    choice = re.compile(r"\"cuda\" if torch\.cuda\.is_available")
    package = Path(atlas.__file__).parent
    assert not [file for file in package.rglob("*.py") if choice.search(file.read_text("utf-8"))]


def test_whoever_acts_takes_the_first_gpu(machine: Machine) -> None:
    assert acting_device() == torch.device("cuda")


# ---- which GPUs --------------------------------------------------------------------------------------------


def test_one_chosen_gpu_is_shown_before_cuda_is_asked(machine: Machine) -> None:
    assert settle_device(DistributedConfig(gpu_ids=[3])) == "cuda"

    assert machine.asked == ["3"]


def test_a_choice_is_made_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    for _ in range(3):  # by the command, the preparation and the rank
        settle_device(DistributedConfig(gpu_ids=[1, 3]))
    assert set(machine.asked) == {"5,7"}
    settle_device(DistributedConfig(gpu_ids=[0]))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


def test_a_choice_beyond_what_is_visible_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(InputError, match="GPU 2 is asked for, but CUDA_VISIBLE_DEVICES=4,5 shows 2"):
        settle_device(DistributedConfig(gpu_ids=[2]))


def test_a_choice_that_comes_too_late_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(InputError, match="already uses CUDA"):
        settle_device(DistributedConfig(gpu_ids=[1]))


def test_two_ranks_share_no_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "8")
    with pytest.raises(InputError, match="Process 8 of this machine has no GPU: 8 are visible"):
        check_gpu_of_rank(DistributedConfig())
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # a cluster may show each process its own
    check_gpu_of_rank(DistributedConfig())
    with pytest.raises(InputError, match="names 0,2, but there is 1 process"):
        check_gpu_of_rank(DistributedConfig(gpu_ids=[0, 2]))


# ---- the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flag", "visible"), [(["--gpu-ids", "3"], "3"), (["--cpu"], "")])
def test_the_command_settles_the_gpus_before_anything_asks_cuda(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, flag: list[str], visible: str
) -> None:
    from atlas.cli import app

    def prepared(config: Config, resume: Any, locks: Any) -> Any:
        torch.cuda.is_available()
        return PreparedRun(load_config(config, ["run_name=prepared"]))

    monkeypatch.setattr("atlas.prepare.prepare", prepared)
    monkeypatch.setattr("atlas.train.run", lambda prepared: None)

    app(["train", *flag], standalone_mode=False)

    assert set(machine.asked) == {visible}


def test_caching_features_on_chosen_gpus_hands_the_choice_on_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from atlas.cli import app

    handed: list[str] = []
    monkeypatch.setattr("atlas.policies.feature_cache_filling.begin_cache", lambda *_: None)
    monkeypatch.setattr("atlas.policies.feature_cache_filling.describe", lambda _: "")
    monkeypatch.setattr(
        "atlas.launch.launch_ranks",
        lambda _, plan: handed.append(plan.environment(os.environ)["CUDA_VISIBLE_DEVICES"]) or 0,  # type: ignore[func-returns-value]
    )

    app(["data", "cache-features", "--out", str(tmp_path), "distributed.gpu_ids=[5,7]"], standalone_mode=False)

    assert handed == ["5,7"]


def test_bfloat16_that_is_emulated_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bf16()


def test_a_checkpoint_of_a_training_on_the_cpu_asks_no_gpu(machine: Machine) -> None:
    assert set(random_state()) == {"torch", "numpy", "python"}
