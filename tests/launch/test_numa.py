"""Which cores a rank stays on, on machines as the kernel describes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atlas.launch import numa
from atlas.system.process_control.cores import cores_of_rank

TWO_NODES = {0: "0-3,8-11", 1: "4-7,12-15"}
ALL = set(range(16))


class Machine:
    """Sixteen cores in two nodes, four GPUs: two at each node. `bound` holds what the rank's threads were bound to."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.allowed, self.bound = root, ALL, set[frozenset[int]]()
        self.describe(TWO_NODES)
        (root / "devices/system/cpu").mkdir(parents=True)
        (root / "devices/system/cpu/online").write_text("0-15\n")
        patch.setattr(numa, "_address", lambda gpu: f"0000:{gpu}b:00.0")
        patch.setattr(os, "sched_getaffinity", lambda _: self.allowed)
        patch.setattr(os, "sched_setaffinity", lambda _, cores: self.bound.add(frozenset(cores)))
        patch.setenv("LOCAL_WORLD_SIZE", "4")
        patch.setenv("ATLAS_RANKS_ON_CORES", "")
        patch.delenv("ATLAS_RANKS_ON_CORES")

    def describe(self, nodes: dict[int, str]) -> None:
        for gpu in range(4):
            device = self.root / f"bus/pci/devices/0000:{gpu}b:00.0"
            device.mkdir(parents=True, exist_ok=True)
            node = gpu // 2 if 0 in nodes else -1
            (device / "numa_node").write_text(f"{node}\n")
            (device / "local_cpulist").write_text(nodes.get(node, "0-15") + "\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to cores")
@pytest.mark.parametrize(("rank", "cores"), [("1", {0, 1, 2, 3, 8, 9, 10, 11}), ("2", {4, 5, 6, 7, 12, 13, 14, 15})])
def test_a_rank_stays_near_its_gpu_with_its_share(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, rank: str, cores: set[int]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)

    numa.stay_near_gpu(machine.root)

    assert machine.bound == {frozenset(cores)}
    machine.allowed = cores  # as it is from now on
    assert cores_of_rank() == 4  # eight cores, which two of the four ranks share


@pytest.mark.parametrize("why", ["the user has chosen", "a virtual machine", "one process", "no driver"])
def test_otherwise_it_uses_what_it_is_given(machine: Machine, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "the user has chosen":
        machine.allowed = {0, 1, 2, 4, 5, 6}
    if why == "a virtual machine":
        machine.describe({})
    if why == "one process":
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    if why == "no driver":
        monkeypatch.setattr(numa, "_address", lambda _: None)

    numa.stay_near_gpu(machine.root)

    assert machine.bound == set()
    assert cores_of_rank() == len(machine.allowed) // (1 if why == "one process" else 4)
