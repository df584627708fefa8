"""How fast trainings are, for gpu_check.py: samples per second, and what a trace says about the GPU's time."""

from __future__ import annotations

import gzip
import json
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_job import Job, overrides_of, vggt_of
from gpu_runs import train

from atlas.config import load_config
from atlas.data.formats import open_dataset
from atlas.data.sampling.chunks import ChunkDataset
from atlas.environments.rendering import RenderingGPU
from atlas.policies.feature_cache_filling import begin_cache, fill_cache, frozen_encoder
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.workers import EnvironmentPool
from atlas.system.process_control.cores import available_cores

_TRACED = 3  # steps
_WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")


def speed(job: Job) -> dict[str, Any]:
    """The speed of the default policy, and on GPUs of those with a VGGT: frozen, with adapters, from a cache."""
    kinds: dict[str, list[str]] = {"default": []}
    if job.gpus:
        kinds["vggt frozen"] = vggt_of(job)
        if find_spec("peft") is not None:
            kinds["vggt with adapters"] = vggt_of(job, "lora: {rank: 8}")
        kinds["vggt cached"] = [*vggt_of(job), f"data.feature_cache={_cached(job)}"]
    return {name: _measured(job, name, overrides) for name, overrides in kinds.items()}


def _measured(job: Job, name: str, overrides: list[str]) -> dict[str, Any]:
    steps = 6 if job.quick else 40
    run_name = name.replace(" ", "_")
    batch = [] if job.quick else ["data.batch_size=64"]
    traced = [f"training.profile={{start: {steps - _TRACED}, steps: {_TRACED}}}", f"training.max_steps={steps}"]
    scalars = train(job, run_name, *batch, *overrides, *traced)
    rates = [value for _, value in scalars["perf/samples_per_second"]][1:-_TRACED]  # without warm-up and tracing
    found: dict[str, Any] = {"samples/s": round(statistics.median(rates), 1)}
    if "perf/mfu" in scalars:
        found["mfu"] = round(scalars["perf/mfu"][-1 - _TRACED][1], 4)
    (file,) = (job.folder / "runs" / run_name / "profile").glob("rank0_*.gz")
    return found | read_trace(file)


def read_trace(file: Path) -> dict[str, Any]:
    """The share of the traced steps in which the GPU was idle and, per step, the copies from or to memory that is not
    pinned and the calls that wait for the GPU."""
    with gzip.open(file) as stream:
        events = [event for event in json.load(stream)["traceEvents"] if event.get("ph") == "X"]
    marks = [event for event in events if event["name"].startswith("ProfilerStep#")]
    steps = len({event["name"] for event in marks})
    found: dict[str, Any] = {"traced steps": steps}
    on_gpu = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in _ON_GPU)
    if not on_gpu or not steps:
        return found
    busy, end = 0.0, on_gpu[0][0]
    for start, stop in on_gpu:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    pageable = sum("Pageable" in e["name"] for e in events if e.get("cat") == "gpu_memcpy")
    waits = sum(e["name"] in _WAITS for e in events if e.get("cat") == "cuda_runtime")
    idle = 1 - busy / (end - on_gpu[0][0])
    return found | {"idle": round(idle, 3), "pageable copies": pageable / steps, "waits": waits / steps}


def _cached(job: Job) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cache_", dir=job.folder))
    config = load_config(None, [*overrides_of(job), *vggt_of(job)])
    dataset = open_dataset(config.data.path)
    frames = ChunkDataset(dataset, np.arange(len(dataset)), dataset.cameras, config.data.image_size, horizon=1)
    device = torch.device(job.device)
    encoder = frozen_encoder(config).build_cached().to(device)
    fill_cache(begin_cache(config, folder, 0), encoder, frames, config, device)
    return folder


def rendering(job: Job) -> dict[str, Any]:
    """Steps per second, including pictures, of as many simulators as an evaluation has, on each GPU separately."""
    workers = min(8, available_cores())
    found = {}
    for number in range(max(1, job.gpus)):
        gpu = RenderingGPU.of(torch.device("cuda", number)) if job.gpus else None
        with EnvironmentPool("cubes", 64, workers, gpu) as pool:
            _all(pool, lambda pool, worker: pool.begin(worker, PlannedEpisode(worker, worker, "pick up the red cube")))
            start = time.perf_counter()
            rounds = 20
            for _ in range(rounds):
                _all(pool, lambda pool, worker: pool.run(worker, np.zeros((1, 7))))
            rate = rounds * workers / (time.perf_counter() - start)
        found[f"gpu {number}" if job.gpus else "cpu"] = f"{rate:.0f} steps/s of {workers} simulators"
    return found


def _all(pool: EnvironmentPool, do: Any) -> None:
    for worker in range(len(pool)):
        do(pool, worker)
    left = len(pool)
    while left:
        left -= len(pool.ready())
