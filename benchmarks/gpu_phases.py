"""What gpu_check.py checks, phase by phase; and the phases that compare numbers, in one process."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpu_runs
import gpu_speed
import torch
from gpu_job import Job, overrides_of, policies

from atlas.config import Config, load_config
from atlas.data.training_data import TrainingData
from atlas.doctor.gpus import read_gpus
from atlas.environments.rendering import RenderingGPU, egl_addresses, egl_device
from atlas.policies.modular.policy import ModularPolicy
from atlas.rollout.recording import RecordSettings
from atlas.rollout.recording import record as record_episodes
from atlas.train import make_policy
from atlas.training.parallel.block_setup import set_tf32, set_up_blocks
from atlas.training.perf.cost import example_batch
from atlas.training.prepared_run import PreparedRun

# Relative differences of gradients: for float32 on another device, where a frozen backbone's tokens may be rounded the
# other way, and for bfloat16.
EXACT, ROUNDED = 5e-3, 0.05


@dataclass(frozen=True)
class Phase:
    """run: returns its findings by name, and raises AssertionError that says what is wrong. gpus: the least it needs.
    seconds: the most it may take. slow: not for --quick."""

    run: Callable[[Job], dict[str, Any]]
    gpus: int = 0
    seconds: int = 60
    slow: bool = False


def record(out: Path, quick: bool) -> str:
    """Demonstrations to train on, recorded unless they exist."""
    record_episodes(RecordSettings(episodes=8 if quick else 24, image_size=64), out / "cubes")
    return str(out / "cubes")


# ---- the machine -----------------------------------------------------------------------------------------


def driver(job: Job) -> dict[str, Any]:
    """What the driver and torch say about the GPUs."""
    seen = read_gpus()
    assert seen.error is None, seen.error
    assert not job.gpus or torch.version.cuda is not None, "the driver has GPUs, and torch is built for CPUs"
    return {
        "driver": seen.driver,
        "cuda of the driver": seen.cuda,
        "cuda of torch": torch.version.cuda,
        "gpus": [f"{gpu.name}, {gpu.memory / 2**30:.0f} GiB" for gpu in seen.gpus],
    }


def topology(job: Job) -> dict[str, Any]:
    """How the GPUs are linked, according to nvidia-smi."""
    program = shutil.which("nvidia-smi")
    assert program is not None, "there is no nvidia-smi"
    done = subprocess.run([program, "topo", "-m"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    peers = [[i == j or torch.cuda.can_device_access_peer(i, j) for j in range(job.gpus)] for i in range(job.gpus)]
    return {"links": done.stdout, "peers": peers}


def egl(job: Job) -> dict[str, Any]:
    """EGL's devices, and which of them is which GPU."""
    addresses = egl_addresses()
    found: dict[str, Any] = {"devices": addresses}
    for number in range(job.gpus):
        gpu = RenderingGPU.of(torch.device("cuda", number))
        assert gpu is not None
        device = egl_device(gpu, addresses)
        assert device is not None, f"GPU {number} ({gpu.pci}) is none of EGL's devices {addresses}"
        found[f"gpu {number}"] = f"{gpu.pci} is EGL's {device}"
    return found


# ---- numbers ---------------------------------------------------------------------------------------------


def numbers(job: Job) -> dict[str, Any]:
    """Losses and gradients of each policy on a GPU compared with a CPU: in float32, and in bfloat16 as trained."""
    found: dict[str, Any] = {}
    set_tf32(False)
    for name, config, policy, data in made(job):
        cpu = look(policy, data, config, "cpu", low=False)
        for low, most in ((False, EXACT), (True, ROUNDED)):
            gpu = look(policy, data, config, "cuda", low)
            loss, gradient = furthest(cpu, gpu)
            kind = "bfloat16" if low else "float32"
            found[f"{name} in {kind}"] = f"loss {loss:.1e}, gradients {gradient:.1e}"
            assert loss < most and gradient < most, f"{name} in {kind}: loss {loss:.1e}, gradients {gradient:.1e} off"
    return found


def recomputing(job: Job) -> dict[str, Any]:
    """Recomputed activations give the same loss and gradients bit for bit."""
    found: dict[str, Any] = {}
    for name, config, policy, data in made(job):
        plain = look(policy, data, config, job.device, low=False)
        set_up_blocks(policy, recompute=True, compiled=False)
        loss, gradient = furthest(plain, look(policy, data, config, job.device, low=False))
        assert loss == gradient == 0, f"{name}: loss {loss:.1e}, gradients {gradient:.1e} off"
        found[name] = "the same bits"
    return found


def compiling(job: Job) -> dict[str, Any]:
    """Compiled blocks give the same up to rounding."""
    name, config, policy, data = next(made(job))
    plain = look(policy, data, config, job.device, low=False)
    set_up_blocks(policy, recompute=False, compiled=True)
    loss, gradient = furthest(plain, look(policy, data, config, job.device, low=False))
    assert loss < EXACT and gradient < EXACT, f"{name}: loss {loss:.1e}, gradients {gradient:.1e} off"
    return {name: f"loss {loss:.1e}, gradients {gradient:.1e}"}


def made(job: Job) -> Iterator[tuple[str, Config, ModularPolicy, TrainingData]]:
    """Each policy, with data in its sizes. On the CPU."""
    for name, overrides in policies(job).items():
        config = load_config(None, [*overrides_of(job), "model.fusion.dropout=0", *overrides])
        prepared = PreparedRun(config)
        data = prepared.data
        torch.manual_seed(0)
        yield name, config, make_policy(prepared), data


Seen = tuple[float, dict[str, torch.Tensor]]


def look(policy: ModularPolicy, data: TrainingData, config: Config, device: str, low: bool) -> Seen:
    """The loss of a batch, and the gradient of each weight, on the CPU."""
    policy = policy.to(device).train()
    policy.zero_grad(set_to_none=True)
    batch = example_batch(data.train, config.data.batch_samples, device)
    batch = replace(batch, images=batch.unit_images())
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low):
        loss = policy(batch).loss
    loss.backward()
    gradients = {name: p.grad.float().cpu() for name, p in policy.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


def furthest(a: Seen, b: Seen) -> tuple[float, float]:
    """How far losses and gradients are apart: relative to the loss, and to the norm of all gradients."""
    assert a[1].keys() == b[1].keys()
    off = torch.stack([(a[1][name] - b[1][name]).square().sum() for name in a[1]]).sum().sqrt()
    size = torch.stack([gradient.square().sum() for gradient in a[1].values()]).sum().sqrt()
    return abs(a[0] - b[0]) / max(abs(a[0]), 1e-9), float(off / size)


PHASES: dict[str, Phase] = {
    "driver": Phase(driver, seconds=10),
    "topology": Phase(topology, gpus=1, seconds=30),
    "egl": Phase(egl, seconds=10),
    "numbers": Phase(numbers, gpus=1),
    "recomputing": Phase(recomputing),
    "compiling": Phase(compiling, gpus=1, seconds=120),
    "accumulation": Phase(gpu_runs.accumulation),
    "resume": Phase(gpu_runs.resume),
    "1 against 2": Phase(gpu_runs.two_ranks, gpus=2, seconds=90),
    "1 against 8": Phase(gpu_runs.eight_ranks, gpus=8, seconds=90),
    "fsdp": Phase(gpu_runs.fsdp, gpus=2, seconds=90),
    "not finite": Phase(gpu_runs.not_finite),
    "sigterm": Phase(gpu_runs.sigterm, gpus=2, seconds=90),
    "kill -9 of a rank": Phase(gpu_runs.killed, gpus=2, seconds=90),
    "out of memory on a rank": Phase(gpu_runs.out_of_memory, gpus=2, seconds=90),
    "exception in backward": Phase(gpu_runs.exception, gpus=2, seconds=90),
    "sigstop of a rank": Phase(gpu_runs.stopped, gpus=2, seconds=180),
    "one process a gpu": Phase(gpu_runs.contexts, gpus=1, seconds=90),
    "batch size": Phase(gpu_runs.batch_size, gpus=1, seconds=120),
    "speed": Phase(gpu_speed.speed, seconds=240),
    "rendering": Phase(gpu_speed.rendering, seconds=90, slow=True),
}
