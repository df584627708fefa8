"""Checks whether several processes find each other, and whether their sums are right."""

from __future__ import annotations

from typing import Any

from atlas.doctor.child import Tried, try_module
from atlas.doctor.gpus import visible_gpus
from atlas.doctor.verdict import Finding

_SECONDS = 180.0
_NO_DIRECT = {"NCCL_P2P_DISABLE": "1"}


def check_processes() -> Finding:
    """Two CPU processes sum their numbers over gloo."""
    tried = _all_reduce("gloo", 2, {"CUDA_VISIBLE_DEVICES": ""})
    if tried.worked:
        seen = f"2 processes summed over gloo, {_speed(tried.answer)}"
        return Finding("processes", "ok", seen, None, tried.answer)
    fix = (
        "Several processes cannot work together here; --mode single works. Ports of 127.0.0.1 must be usable: look "
        "at firewalls, at GLOO_SOCKET_IFNAME and at proxies for localhost."
    )
    seen = f"2 processes could not sum over gloo: {tried.why}"
    return Finding("processes", "problem", seen, fix, {"error": tried.why})


def check_nccl() -> Finding:
    """All GPUs sum their numbers over NCCL, where there are two or more."""
    gpus = visible_gpus()
    if gpus < 2:
        return Finding("nccl", "ok", f"not needed with {gpus or 'no'} GPU", None, {"gpus": gpus})
    tried = _all_reduce("nccl", gpus)
    without = None if tried.worked else _all_reduce("nccl", gpus, _NO_DIRECT)
    return judge_nccl(gpus, tried, without)


def judge_nccl(gpus: int, tried: Tried, without: Tried | None) -> Finding:
    """without: the trial without direct transfers between GPUs, where it failed with them."""
    if tried.worked:
        seen = f"{gpus} GPUs summed over NCCL, {_speed(tried.answer)}"
        return Finding("nccl", "ok", seen, None, {"gpus": gpus, **tried.answer})
    seen = f"{gpus} GPUs could not sum over NCCL: {tried.why}"
    if without is not None and without.worked:
        seen += f"; with NCCL_P2P_DISABLE=1 they can, {_speed(without.answer)}"
        fix = "Set NCCL_P2P_DISABLE=1. The cause is often PCI access control (ACS) or an IOMMU, on in the BIOS."
    else:
        fix = (
            "Set NCCL_DEBUG=INFO and run `atlas doctor` again to see more; in a container, look at --shm-size and "
            "--ipc=host. Until then, --gpus 1 works."
        )
    return Finding("nccl", "problem", seen, fix, {"gpus": gpus, "error": tried.why})


def _speed(found: dict[str, Any]) -> str:
    size = f"{found['bytes'] / 2**20:.0f} MiB in {1000 * found['seconds']:.1f} ms"
    return f"{size}, a bus bandwidth of {found['bus_bandwidth'] / 1e9:.2f} GB/s"


def _all_reduce(
    backend: str, processes: int, environment: dict[str, str | None] | dict[str, str] | None = None
) -> Tried:
    settings = {"OMP_NUM_THREADS": "1", **(environment or {})}
    return try_module("atlas.doctor.all_reduce", [backend, str(processes)], _SECONDS, settings)
