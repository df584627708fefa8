"""What is said of machines that are not at hand: readings as such machines give them, and the words for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas.doctor.child import Trial
from atlas.doctor.gpus import Driver, Gpu, judge_gpus, judge_torch
from atlas.doctor.limits import core_limit, memory_limit, memory_used
from atlas.doctor.machine import declared_requirements, judge_cores, judge_memory, judge_packages
from atlas.doctor.processes import judge_nccl
from atlas.doctor.verdict import Finding
from atlas.doctor.wandb_server import judge_wandb
from atlas.doctor.world import judge_failure, judge_picture

GIB = 2**30
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 1 * GIB)
EIGHT = Driver([H100] * 8, "550.54.15", "12.4")


def said(finding: Finding) -> str:
    return f"{finding.status}: {finding.seen} -> {finding.fix}"


def torch_says(gpus: int, cuda: str | None = "12.6", supported: bool = True, apart: bool = False, **more: Any) -> Trial:
    gpu = {"name": "H100", "memory": 80 * GIB, "capability": "9.0", "bf16": True, "supported": supported}
    peers = [[i == j or not apart for j in range(gpus)] for i in range(gpus)]
    found = {"torch": "2.6.0", "cuda": cuda, "cudnn": 90100, "nccl": "2.21.5", "gpus": [gpu] * gpus, "peers": peers}
    return Trial(0, 60, "", {**found, "error": None, **more})


# ---- GPUs --------------------------------------------------------------------------------------------------


def test_gpus_are_named_with_memory_and_driver() -> None:
    assert said(judge_gpus(Driver())) == "ok: no NVIDIA GPU; training runs on CPUs -> None"
    assert judge_gpus(EIGHT).seen == "8 x NVIDIA H100 80GB HBM3, 80.0 GiB; driver 550.54.15, up to CUDA 12.4"


def test_a_driver_that_fails_and_gpus_in_use_are_told() -> None:
    mismatch = Driver(error="Driver/library version mismatch", files=["/dev/nvidia0"])
    used = Driver([H100, Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 40 * GIB)], "550.54.15", "12.4")

    assert judge_gpus(mismatch).status == "problem" and "version mismatch" in judge_gpus(mismatch).seen
    assert judge_gpus(used).status == "warning" and "GPU 1: 40.0 GiB" in judge_gpus(used).seen
    assert "--gpu-ids" in str(judge_gpus(used).fix)


def test_torch_that_uses_all_gpus_says_how_they_reach_each_other() -> None:
    direct, apart = judge_torch(torch_says(2), EIGHT, None), judge_torch(torch_says(2, apart=True), EIGHT, None)

    assert direct.status == "ok" and "CUDA 12.6" in direct.seen and "NCCL 2.21.5" in direct.seen
    assert "all of which reach each other's memory directly" in direct.seen
    assert "GPUs 0 and 1 do not reach" in apart.seen


@pytest.mark.parametrize(
    ("tried", "visible", "status", "words"),
    [
        (torch_says(0, cuda=None), None, "problem", ("without CUDA", "none of the 8 GPUs", "built for GPUs")),
        (torch_says(0, error="driver too old"), None, "problem", ("driver too old", "up to CUDA 12.4", "update it")),
        (torch_says(0), "", "warning", ("CUDA_VISIBLE_DEVICES=''", "unset it")),
        (torch_says(1, supported=False), None, "problem", ("no code for H100", "another torch")),
        (
            Trial(1, 60, "", error="ImportError: libcudnn.so.9"),
            None,
            "problem",
            ("libcudnn.so.9", "Install torch again"),
        ),
    ],
)
def test_torch_that_cannot_use_the_gpus(tried: Trial, visible: str | None, status: str, words: tuple[str, ...]) -> None:
    finding = judge_torch(tried, EIGHT, visible)

    assert finding.status == status and all(word in said(finding) for word in words), said(finding)


def test_gpus_that_cannot_sum_are_tried_without_direct_transfers() -> None:
    sums = Trial(0, 60, "", {"bytes": 2**28, "seconds": 0.001, "bus_bandwidth": 4e11})
    hangs = Trial(None, 60, "")

    assert "400.00 GB/s" in judge_nccl(8, sums, None).seen
    with_a_way = judge_nccl(8, hangs, sums)
    assert with_a_way.status == "problem" and "did not end within 60 s" in with_a_way.seen
    assert "Set NCCL_P2P_DISABLE=1" in str(with_a_way.fix) and "NCCL_DEBUG=INFO" in str(judge_nccl(8, hangs, hangs).fix)


# ---- packages, cores, memory -------------------------------------------------------------------------------


def test_packages_are_held_against_what_is_declared() -> None:
    required = ["torch>=2.6", "h5py>=3.10"]

    wrong = judge_packages(required, {"torch": "2.4.1", "h5py": None})

    assert judge_packages(required, {"torch": "2.7.0+cu126", "h5py": "3.12"}).status == "ok"
    assert wrong.status == "problem" and "torch is 2.4.1, but Atlas needs >=2.6" in wrong.seen
    assert "h5py is not installed" in wrong.seen and "pip install" in str(wrong.fix)
    assert any(text.startswith("torch") for text in declared_requirements())


@pytest.mark.parametrize(
    ("there", "allowed", "limit", "gpus", "words"),
    [
        (64, 64, None, 8, ("ok: 64", "may use 64")),
        (64, 4, None, 8, ("warning", "may use 4", "--cpus-per-task")),
        (64, 64, 2.0, 0, ("warning", "2 cores' worth", "OMP_NUM_THREADS=2")),
    ],
)
def test_cores_that_are_allowed(
    there: int, allowed: int, limit: float | None, gpus: int, words: tuple[str, ...]
) -> None:
    text = said(judge_cores(there, allowed, limit, 0.5, gpus))

    assert all(word in text for word in words), text


def test_memory_is_judged_by_the_lower_of_machine_and_container() -> None:
    roomy = judge_memory(256 * GIB, 200 * GIB, None, None)
    boxed = judge_memory(256 * GIB, 200 * GIB, 8 * GIB, 7 * GIB)
    full = judge_memory(16 * GIB, 2 * GIB, None, None)

    assert roomy.status == "ok" and "256.0 GiB, 200.0 GiB of them free" in roomy.seen
    assert boxed.status == "problem" and "limited to 8.0 GiB" in boxed.seen and "--memory" in str(boxed.fix)
    assert full.status == "warning" and "other programs" in str(full.fix)


# ---- containers' limits, in the files that Linux has for them ---------------------------------------------


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


def test_limits_of_version_two_hold_from_any_group_around(tmp_path: Path) -> None:
    write(
        tmp_path,
        own="0::/user/job",
        user__memory_DOT_max=str(8 * GIB),
        user__memory_DOT_current=str(7 * GIB),
        user__memory_DOT_stat=f"anon 5\ninactive_file {2 * GIB}",
        user__job__memory_DOT_max="max",
        user__job__cpu_DOT_max="150000 100000",
        user__cpu_DOT_max="max 100000",
    )
    place = {"root": tmp_path, "own": tmp_path / "own"}

    assert memory_limit(**place) == 8 * GIB and memory_used(**place) == 5 * GIB
    assert core_limit(**place) == 1.5


def test_limits_of_version_one_are_found_where_a_container_sees_itself_at_the_top(tmp_path: Path) -> None:
    write(
        tmp_path,
        own="4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/docker/abc",
        memory__memory_DOT_limit_in_bytes=str(4 * GIB),
        memory__memory_DOT_usage_in_bytes=str(1 * GIB),
        cpu__cpu_DOT_cfs_quota_us="400000",
        cpu__cpu_DOT_cfs_period_us="100000",
    )
    place = {"root": tmp_path, "own": tmp_path / "own"}

    assert memory_limit(**place) == 4 * GIB and memory_used(**place) == 1 * GIB and core_limit(**place) == 4


def test_no_limit_is_none(tmp_path: Path) -> None:
    write(
        tmp_path,
        own="4:memory:/\n2:cpu:/",
        memory__memory_DOT_limit_in_bytes=str(2**63 - 4096),
        cpu__cpu_DOT_cfs_quota_us="-1",
        cpu__cpu_DOT_cfs_period_us="100000",
    )
    place = {"root": tmp_path, "own": tmp_path / "own"}

    assert memory_limit(**place) is None and memory_used(**place) is None and core_limit(**place) is None


# ---- wandb and rendering -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "mode", "status", "words"),
    [
        ({"version": None}, "online", "warning", ("not installed", "atlas-vla[wandb]")),
        ({"key": True, "error": None}, "online", "ok", ("there is a key", "answers")),
        ({"key": False, "error": None}, "online", "warning", ("there is no key", "wandb login")),
        ({"key": True, "error": "timed out"}, "online", "warning", ("timed out", "wandb sync", "https_proxy")),
        ({"key": False, "error": "timed out"}, "offline", "ok", ("mode offline",)),
    ],
)
def test_wandb_is_never_a_problem(found: dict[str, Any], mode: str, status: str, words: tuple[str, ...]) -> None:
    finding = judge_wandb(Trial(0, 45, "", {"version": "0.31.0", "server": "https://api.wandb.ai", **found}), mode)

    assert finding.status == status and all(word in said(finding) for word in words), said(finding)


def test_rendering_that_fails_names_what_is_set_or_what_to_install() -> None:
    by_variable = judge_failure("no display", {"MUJOCO_GL": "glfw"}, without=True)
    by_library = judge_failure("No EGL library", {}, without=None)

    assert "(with MUJOCO_GL=glfw)" in by_variable.seen and "unset MUJOCO_GL" in str(by_variable.fix)
    assert "libegl1" in str(by_library.fix) and "evaluation.env=none" in str(by_library.fix)


@pytest.mark.parametrize(
    ("renderer", "gpus", "status", "words"),
    [
        ("llvmpipe (LLVM 15.0.6, 256 bits)", 0, "ok", ("in software",)),
        ("llvmpipe (LLVM 15.0.6, 256 bits)", 8, "warning", ("beside 8 GPUs", "NVIDIA_DRIVER_CAPABILITIES=all")),
        ("NVIDIA H100 80GB HBM3/PCIe/SSE2", 8, "ok", ("on NVIDIA H100",)),
    ],
)
def test_software_that_draws_beside_gpus_is_pointed_out(
    renderer: str, gpus: int, status: str, words: tuple[str, ...]
) -> None:
    finding = judge_picture(Trial(0, 60, "", {"backend": "egl", "renderer": renderer, "contrast": 60.0}), gpus)

    assert finding.status == status and all(word in said(finding) for word in words), said(finding)
