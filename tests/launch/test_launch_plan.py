"""How many processes a config gives on a machine with so many GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from atlas.config import DistributedConfig
from atlas.errors import InputError
from atlas.launch import Plan, common_exit_code, count_gpus, plan_processes


@pytest.mark.parametrize(
    ("asked", "found", "plan"),
    [
        ({}, 0, Plan(1, cpu=True)),
        ({}, 1, Plan(1, cpu=False)),
        ({}, 8, Plan(8, cpu=False)),
        ({"mode": "single"}, 0, Plan(1, cpu=True)),
        ({"mode": "single"}, 8, Plan(1, cpu=False)),
        ({"mode": "multi"}, 4, Plan(4, cpu=False)),
        ({"gpus": 2}, 8, Plan(2, cpu=False)),
        ({"mode": "multi", "gpus": 8}, 8, Plan(8, cpu=False)),
        ({"gpu_ids": [0, 2]}, 3, Plan(2, cpu=False, gpu_ids=(0, 2))),
        ({"mode": "single", "gpu_ids": [2]}, 3, Plan(1, cpu=False, gpu_ids=(2,))),
        ({"cpu": True}, 8, Plan(1, cpu=True)),
        ({"cpu": True, "mode": "multi", "gpus": 2}, 0, Plan(2, cpu=True)),
        ({"cpu": True, "gpus": 3}, 0, Plan(3, cpu=True)),
    ],
)
def test_plan(asked: dict[str, Any], found: int, plan: Plan) -> None:
    assert plan_processes(DistributedConfig(**asked), found) == plan


@pytest.mark.parametrize(
    ("asked", "found", "words"),
    [
        ({"gpus": 8}, 0, ["8 GPUs", "no GPU was found", "--cpu"]),
        ({"gpus": 8}, 2, ["8 GPUs", "2 GPUs were found", "--gpus 2"]),
        ({"gpus": 1}, 0, ["no GPU was found"]),
        ({"mode": "multi"}, 0, ["--mode multi", "no GPU was found", "--cpu"]),
        ({"gpu_ids": [0, 2]}, 2, ["0,2", "GPU 2", "2 GPUs were found", "0 to 1"]),
        ({"gpu_ids": [0]}, 0, ["GPU 0", "no GPU was found"]),
        ({"gpu_ids": [1, 1]}, 2, ["1,1", "twice"]),
        ({"gpu_ids": []}, 2, ["--gpu-ids", "empty"]),
        ({"mode": "single", "gpu_ids": [0, 1]}, 2, ["--mode single", "2"]),
        ({"cpu": True, "mode": "multi"}, 0, ["--gpus N"]),
    ],
)
def test_wrong_requests_say_what_there_is(asked: dict[str, Any], found: int, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        plan_processes(DistributedConfig(**asked), found)
    for word in words:
        assert word in str(error.value)


def test_environment_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.launch.plan.available_cores", lambda: 12)
    assert Plan(4, cpu=True).environment({}) == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "3"}
    assert Plan(32, cpu=True).environment({})["OMP_NUM_THREADS"] == "1"
    assert Plan(4, cpu=False).environment({"OMP_NUM_THREADS": "7"}) == {}
    # One process has the machine for itself.
    assert Plan(1, cpu=True).environment({}) == {"CUDA_VISIBLE_DEVICES": ""}
    chosen = Plan(2, cpu=False, gpu_ids=(0, 2))
    assert chosen.environment({})["CUDA_VISIBLE_DEVICES"] == "0,2"
    # Ids count the GPUs that are visible, as the number found does.
    assert chosen.environment({"CUDA_VISIBLE_DEVICES": "4, 5,7"})["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_gpus_are_not_looked_for_where_only_cpus_are_wanted() -> None:
    assert count_gpus(DistributedConfig(cpu=True)) == 0


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 1], 1),
        ([1, 2], 2),
        ([143, 1], 1),
        ([143, 143], 143),
        ([130, 0], 130),
        ([-9, 143], 137),
        ([-15], 143),
    ],
)
def test_common_exit_code(codes: list[int], code: int) -> None:
    assert common_exit_code(codes) == code
