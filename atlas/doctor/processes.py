"""Checks whether several processes find each other, and whether their sums are right."""

from __future__ import annotations

from typing import Any

from atlas.doctor.child import Trial, try_module
from atlas.doctor.gpus import visible_gpus
from atlas.doctor.verdict import Finding

_SECONDS = 180.0
_NO_DIRECT = {"NCCL_P2P_DISABLE": "1"}


def check_processes() -> Finding:
    """Two CPU processes sum their numbers over gloo."""
    trial = _all_reduce("gloo", 2, {"CUDA_VISIBLE_DEVICES": ""})
    if trial.worked:
        summary = f"2 processes summed over gloo, {_speed(trial.answer)}"
        return Finding("processes", "ok", summary, None, trial.answer)
    fix = (
        "Several processes cannot work together here; --mode single works. Ports of 127.0.0.1 must be usable: look "
        "at firewalls, at GLOO_SOCKET_IFNAME and at proxies for localhost."
    )
    summary = f"2 processes could not sum over gloo: {trial.why}"
    return Finding("processes", "problem", summary, fix, {"error": trial.why})


def check_nccl() -> Finding:
    """All GPUs sum their numbers over NCCL, where there are two or more."""
    gpus = visible_gpus()
    if gpus < 2:
        return Finding("nccl", "ok", f"not needed with {gpus or 'no'} GPU", None, {"gpus": gpus})
    trial = _all_reduce("nccl", gpus)
    without = None if trial.worked else _all_reduce("nccl", gpus, _NO_DIRECT)
    return judge_nccl(gpus, trial, without)


def judge_nccl(gpus: int, trial: Trial, without: Trial | None) -> Finding:
    """without: the trial without direct transfers between GPUs, made if the one with them failed."""
    if trial.worked:
        summary = f"{gpus} GPUs summed over NCCL, {_speed(trial.answer)}"
        return Finding("nccl", "ok", summary, None, {"gpus": gpus, **trial.answer})
    summary = f"{gpus} GPUs could not sum over NCCL: {trial.why}"
    if without is not None and without.worked:
        summary += f"; with NCCL_P2P_DISABLE=1 they can, {_speed(without.answer)}"
        fix = "Set NCCL_P2P_DISABLE=1. The cause is often PCI access control (ACS) or an IOMMU, on in the BIOS."
    else:
        fix = (
            "Set NCCL_DEBUG=INFO and run `atlas doctor` again to see more; in a container, look at --shm-size and "
            "--ipc=host. Until then, --gpus 1 works."
        )
    return Finding("nccl", "problem", summary, fix, {"gpus": gpus, "error": trial.why})


def _speed(found: dict[str, Any]) -> str:
    size = f"{found['bytes'] / 2**20:.0f} MiB in {1000 * found['seconds']:.1f} ms"
    return f"{size}, a bus bandwidth of {found['bus_bandwidth'] / 1e9:.2f} GB/s"


def _all_reduce(
    backend: str, processes: int, environment: dict[str, str | None] | dict[str, str] | None = None
) -> Trial:
    settings = {"OMP_NUM_THREADS": "1", **(environment or {})}
    return try_module("atlas.doctor.all_reduce", [backend, str(processes)], _SECONDS, settings)
