"""The GPUs: the driver's description of them, and whether torch can use them."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atlas.doctor.child import Trial, try_module
from atlas.doctor.verdict import Finding, gib

_TORCH_SECONDS = 120.0
_BUSY = 0.2  # the share of a GPU's memory above which it counts as in use by others
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver sees it; memory in bytes."""

    name: str
    memory: int
    used: int


@dataclass(frozen=True)
class Driver:
    """What NVIDIA's management library reports, without CUDA. error: set if there are GPUs but the driver fails."""

    gpus: Sequence[Gpu] = ()
    driver: str | None = None
    cuda: str | None = None  # the newest that the driver can run
    error: str | None = None
    files: Sequence[str] = field(default_factory=list)  # /dev/nvidia0, …


@functools.cache
def read_gpus() -> Driver:
    """Ask the driver about all GPUs of the machine, whether CUDA_VISIBLE_DEVICES shows them or not."""
    files = sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
    except Exception as error:  # pynvml makes its error types at run time; or it is missing
        return Driver(error=str(error) if files else None, files=files)
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        memory = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        gpus = [
            Gpu(str(pynvml.nvmlDeviceGetName(handle)), int(m.total), int(m.used))
            for handle, m in zip(handles, memory, strict=True)
        ]
        version = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        cuda = f"{version // 1000}.{version % 1000 // 10}"
        return Driver(gpus, str(pynvml.nvmlSystemGetDriverVersion()), cuda, files=files)
    except pynvml.NVMLError as error:
        return Driver(error=str(error), files=files)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def check_gpus() -> Finding:
    """The GPUs, their memory and their driver."""
    return judge_gpus(read_gpus())


def judge_gpus(driver: Driver) -> Finding:
    details = asdict(driver)
    if driver.error is not None:
        summary = (
            f"there are {len(driver.files)} GPUs ({', '.join(driver.files)}), but their driver fails: {driver.error}"
        )
        fix = "Run nvidia-smi; an updated driver needs a restart, and a container needs the NVIDIA container toolkit."
        return Finding("gpus", "problem", summary, fix, details)
    if not driver.gpus:
        return Finding("gpus", "ok", "no NVIDIA GPU; training runs on CPUs", None, details)
    kinds = [f"{gpu.name}, {gib(gpu.memory)}" for gpu in driver.gpus]
    counted = "; ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    summary = f"{counted}; driver {driver.driver}, up to CUDA {driver.cuda}"
    busy = [i for i, gpu in enumerate(driver.gpus) if gpu.used > _BUSY * gpu.memory]
    if busy:
        used = ", ".join(f"GPU {i}: {gib(driver.gpus[i].used)}" for i in busy)
        fix = "Others may be using them (see nvidia-smi): choose free ones with --gpu-ids."
        return Finding("gpus", "warning", f"{summary}; memory in use on {used}", fix, details)
    return Finding("gpus", "ok", summary, None, details)


@functools.cache
def read_torch() -> Trial:
    """Ask torch in a separate process for its versions and the GPUs that it sees."""
    return try_module("atlas.doctor.probes", ["torch"], _TORCH_SECONDS)


def visible_gpus() -> int:
    """The number of GPUs that torch can use here."""
    trial = read_torch()
    return len(trial.answer["gpus"]) if trial.worked else 0


def check_torch() -> Finding:
    """Whether torch can be imported, and uses the machine's GPUs."""
    return judge_torch(read_torch(), read_gpus(), os.environ.get(_VISIBLE))


def judge_torch(trial: Trial, driver: Driver, visible: str | None) -> Finding:
    """visible: the value of CUDA_VISIBLE_DEVICES."""
    if not trial.worked:
        fix = "Install torch again: see https://pytorch.org/get-started/locally/ for this system."
        return Finding("torch", "problem", f"torch does not work: {trial.why}", fix, {"error": trial.why})
    found: dict[str, Any] = trial.answer
    total, seen_by_torch = len(driver.gpus), found["gpus"]
    build = f"CUDA {found['cuda']}, cuDNN {found['cudnn']}, NCCL {found['nccl']}" if found["cuda"] else "without CUDA"
    summary = f"{found['torch']}, {build}"
    if total and not seen_by_torch:
        if visible is not None:
            fix = f"{_VISIBLE}='{visible}' hides them; unset it to train on them."
            return Finding("torch", "warning", f"{summary}; sees none of the {total} GPUs", fix, found)
        fix = "Install a torch that is built for GPUs: see https://pytorch.org/get-started/locally/."
        if found["cuda"]:
            fix = f"The driver runs up to CUDA {driver.cuda}: update it, or install a torch for that CUDA."
        why = f" ({found['error']})" if found["error"] else ""
        return Finding("torch", "problem", f"{summary}; sees none of the {total} GPUs{why}", fix, found)
    unfit = [gpu["name"] for gpu in seen_by_torch if not gpu["supported"]]
    if unfit:
        fix = "Install another torch, whose build has code for them."
        return Finding("torch", "problem", f"{summary}; has no code for {', '.join(unfit)}", fix, found)
    if seen_by_torch:
        summary += f"; sees {len(seen_by_torch)} of {total} GPUs" + _peers(found["peers"])
    return Finding("torch", "ok", summary, None, found)


def _peers(peers: Sequence[Sequence[bool]]) -> str:
    """Say which GPUs reach each other's memory directly; '' for one GPU."""
    pairs = [(i, j) for i in range(len(peers)) for j in range(i + 1, len(peers))]
    apart = [f"{i} and {j}" for i, j in pairs if not peers[i][j]]
    if not pairs:
        return ""
    if not apart:
        return ", all of which reach each other's memory directly"
    return f"; GPUs {', '.join(apart)} do not reach each other's memory directly, which is slower"
