"""Whole trainings for gpu_check.py: several ranks compared with one, resuming, and what happens on failures."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from gpu_job import Job, overrides_of

from atlas.checkpoints import load_state, saved_steps
from atlas.config import load_config
from atlas.prepare import prepare
from atlas.runs import read_scalars
from atlas.train import build_trainer, make_accelerator, run
from atlas.types import Batch, LossTerms

ROOT = Path(__file__).parents[1]
EXACT = ["training.precision=fp32", "training.tf32=false", "model.fusion.dropout=0"]
SAME = 1e-3  # relative difference of losses: on GPUs, sums are added in other orders
ENDLESS = ["training.max_steps=1000000", "checkpoint.save_interval=1"]
DOWN = 60.0  # seconds from a fault until no process is left
HANG_MINUTES = 0.5


# ---- numbers ---------------------------------------------------------------------------------------------


def accumulation(job: Job) -> dict[str, Any]:
    """Two parts of a step give what the whole gives."""
    whole = losses(train(job, "whole", "training.max_steps=4", *EXACT))
    parts = ["data.batch_size=4", "training.gradient_accumulation_steps=2"]
    return {"losses off by": compare(whole, losses(train(job, "parts", "training.max_steps=4", *parts, *EXACT)))}


def resume(job: Job) -> dict[str, Any]:
    """A training resumed from its second step continues as it did the first time."""
    options = ["training.max_steps=4", "checkpoint.save_interval=2", "checkpoint.keep_last_n=3", *EXACT]
    first = losses(train(job, "resumed", *options))
    second = losses(train(job, "resumed", *options, resume=job.folder / "runs/resumed/checkpoints/step_00000002"))
    assert job.gpus or first == second, f"on the CPU the losses were {first}, and are {second}"
    return {"losses off by": compare(first, second), "bit for bit": first == second}


def not_finite(job: Job) -> dict[str, Any]:
    """A step whose loss is NaN is skipped, and training continues."""
    prepared = prepare(load_config(None, [*overrides_of(job, "not_finite"), "training.max_steps=4"]))
    trainer = build_trainer(prepared, make_accelerator(prepared.config))
    forward = trainer.policy.forward

    def spoiled(batch: Batch) -> LossTerms:
        terms = forward(batch)
        if trainer.policy.training and trainer.state.step == 1:
            terms.loss = terms.loss * math.nan
        return terms

    trainer.policy.forward = spoiled  # type: ignore[method-assign]
    metrics = trainer.train()
    trainer.tracker.finish()
    assert metrics["train/skipped_steps"] == 1, f"{metrics['train/skipped_steps']:g} steps were left out"
    assert math.isfinite(metrics["train/loss"]), "the loss did not recover"
    return {"left out": 1, "last loss": round(metrics["train/loss"], 4)}


def two_ranks(job: Job) -> dict[str, Any]:
    return several(job, 2)


def eight_ranks(job: Job) -> dict[str, Any]:
    return several(job, 8)


def fsdp(job: Job) -> dict[str, Any]:
    return several(job, min(job.gpus, 8), "distributed.strategy=fsdp")


def several(job: Job, ranks: int, *overrides: str) -> dict[str, Any]:
    """`ranks` processes with a part of the batch each, compared with one that has all of it."""
    options = ["training.max_steps=6", *EXACT]
    name = "_".join(("ranks", str(ranks), *(o.rpartition("=")[2] for o in overrides)))
    one = losses(train(job, f"one_for_{name}", f"data.batch_size={8 * ranks}", *options))
    command = atlas(ranks, [*overrides_of(job, name), *options, *overrides])
    done = watch(command, 80)
    assert done.code == 0, f"exit code {done.code}: {done.said[-1500:]}"
    return {"losses off by": compare(one, losses(read_scalars(job.folder / "runs" / name)))}


def train(job: Job, name: str, *overrides: str, resume: Path | None = None) -> dict[str, list[tuple[int, float]]]:
    """Train in this process; returns what was logged."""
    run(prepare(load_config(None, [*overrides_of(job, name), *overrides]), resume))
    return read_scalars(job.folder / "runs" / name)


def losses(scalars: dict[str, list[tuple[int, float]]]) -> list[float]:
    return [value for _, value in scalars["train/loss"]]


def compare(expected: list[float], found: list[float]) -> str:
    assert len(expected) == len(found), f"{len(found)} steps instead of {len(expected)}"
    off = max(abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True))
    assert off < SAME, f"the losses are {found} instead of {expected}"
    return f"{off:.1e}"


# ---- faults ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    code: int
    seconds: float  # since the strike, or the start
    said: str  # what it printed


def sigterm(job: Job) -> dict[str, Any]:
    """Training saves, and ends."""
    folder = job.folder / "runs" / "sigterm"
    steps: list[int] = []

    def strike(process: psutil.Process) -> None:
        steps.append(max(saved_steps(folder / "checkpoints")))
        process.send_signal(signal.SIGTERM)

    done = watch(atlas(2, [*overrides_of(job, "sigterm"), *ENDLESS]), DOWN, folder, strike)
    assert done.code == 128 + signal.SIGTERM, f"exit code {done.code}: {done.said[-1500:]}"
    assert max(saved_steps(folder / "checkpoints")) >= steps[0], "nothing was saved"
    return {"exit code": done.code, "seconds": round(done.seconds, 1)}


def killed(job: Job) -> dict[str, Any]:
    return struck(job, "killed", lambda process: rank_of(process, 1).send_signal(signal.SIGKILL), DOWN)


def stopped(job: Job) -> dict[str, Any]:
    """A rank that hangs is detected."""
    name, bound = "stopped", 60 * HANG_MINUTES + DOWN
    return struck(job, name, lambda process: rank_of(process, 1).send_signal(signal.SIGSTOP), bound)


def out_of_memory(job: Job) -> dict[str, Any]:
    return spoiled(job, "memory", "Out of GPU memory")


def exception(job: Job) -> dict[str, Any]:
    return spoiled(job, "exception", "spoiled by gpu_check")


def struck(job: Job, name: str, strike: Callable[[psutil.Process], object], bound: float) -> dict[str, Any]:
    options = [*overrides_of(job, name), *ENDLESS, f"distributed.timeout_minutes={HANG_MINUTES}"]
    done = watch(atlas(2, options), bound, job.folder / "runs" / name, strike)
    assert done.code not in (0, 2), f"exit code {done.code}: {done.said[-1500:]}"
    return {"exit code": done.code, "seconds": round(done.seconds, 1), "said": done.said[-200:]}


def spoiled(job: Job, kind: str, words: str) -> dict[str, Any]:
    """Something fails in rank 1's third step, under Atlas's launcher and under plain torchrun."""
    found: dict[str, Any] = {}
    for launcher in ("atlas", "torchrun"):
        name = f"{kind}_{launcher}"
        options = [*overrides_of(job, name), "training.max_steps=1000000"]
        environment = {
            "GPU_CHECK_FAULT": kind,
            "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent / "spoil"), ROOT.as_posix())),
        }
        done = watch(atlas(2, options, launcher), DOWN + 60, environment=environment)
        assert done.code not in (0, 2), f"{launcher}: exit code {done.code}: {done.said[-1500:]}"
        assert words in done.said, f"{launcher} does not say what was wrong: {done.said[-1500:]}"
        found[launcher] = f"exit code {done.code} after {done.seconds:.0f} s"
    return found


def atlas(ranks: int, overrides: list[str], launcher: str = "atlas") -> list[str]:
    """The command for a training of several ranks."""
    if launcher == "atlas":
        return [sys.executable, "-m", "atlas.cli", "train", "--gpus", str(ranks), *overrides]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*torchrun, "-m", "atlas.cli", "train", *overrides]


def watch(
    command: list[str],
    bound: float,
    folder: Path | None = None,
    strike: Callable[[psutil.Process], object] | None = None,
    environment: dict[str, str] | None = None,
) -> Ended:
    """Run a command to its end; strike it once the run in `folder` has saved twice. It has `bound` seconds after that,
    and must leave no process behind. Raises AssertionError if it fails in this."""
    process = psutil.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout), daemon=True)
    reader.start()
    family: set[psutil.Process] = {process}
    try:
        if strike is not None and folder is not None:
            _until(lambda: process.poll() is not None or len(saved_steps(folder / "checkpoints")) >= 2, 80, said)
            family |= set(process.children(recursive=True)) if process.is_running() else set()
            strike(process)
        start = time.monotonic()
        _until(lambda: process.poll() is not None, bound, said, family, process)
        _until(lambda: not [p for p in family if _alive(p)], 15, said)
        reader.join(5)
        return Ended(process.returncode, time.monotonic() - start, "".join(said))
    finally:
        for each in family:
            with suppress(psutil.Error):
                each.kill()


def _until(
    over: Callable[[], bool],
    seconds: float,
    said: list[str],
    family: set[psutil.Process] | None = None,
    process: psutil.Process | None = None,
) -> None:
    deadline = time.monotonic() + seconds
    while not over():
        assert time.monotonic() < deadline, f"not over after {seconds:.0f} s: {''.join(said)[-1500:]}"
        if family is not None and process is not None:
            with suppress(psutil.Error):
                family |= set(process.children(recursive=True))
        time.sleep(0.1)


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def rank_of(launcher: psutil.Process, rank: int) -> psutil.Process:
    """The process of a rank, rather than one of its workers, which have its environment too."""
    for process in launcher.children(recursive=True):
        with suppress(psutil.Error):
            parent = process.parent()
            if process.environ().get("RANK") == str(rank) and (parent is None or "RANK" not in parent.environ()):
                return process
    raise AssertionError(f"rank {rank} is not there")


# ---- memory ----------------------------------------------------------------------------------------------


def contexts(job: Job) -> dict[str, Any]:
    """Each GPU has one process that computes on it, before and after saving and evaluating."""
    import pynvml  # type: ignore[import-untyped]

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(job.gpus)]

    def counts() -> list[int]:
        return [len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) for handle in handles]

    most, over = counts(), threading.Event()
    before = list(most)

    def look() -> None:
        while not over.wait(0.2):
            most[:] = map(max, most, counts())

    looking = threading.Thread(target=look)
    looking.start()
    options = ["training.max_steps=6", "checkpoint.save_interval=2", "evaluation.interval=3"]
    options += [f"evaluation.episodes={job.gpus}", "evaluation.final_episodes=0"]
    try:
        done = watch(atlas(job.gpus, [*overrides_of(job, "contexts"), *options]), 80)
    finally:
        over.set()
        looking.join()
    assert done.code == 0, f"exit code {done.code}: {done.said[-1500:]}"
    added = [seen - had for seen, had in zip(most, before, strict=True)]
    assert max(added) <= 1, f"processes that computed on each GPU: {added}"
    return {"processes a GPU": added}


def batch_size(job: Job) -> dict[str, Any]:
    """The size that is found can be trained, and the logged peak is training's."""
    scalars = train(job, "auto", "data.batch_size=auto", "training.max_steps=3")
    found = load_state(job.folder / "runs/auto/checkpoints/latest").batch_size
    peak, total = scalars["perf/gpu_memory_gib"][-1][1], torch.cuda.get_device_properties(0).total_memory / 2**30
    assert peak < total, f"{peak:.1f} GiB of {total:.1f}"
    return {"samples": found, "peak": f"{peak:.2f} of {total:.1f} GiB"}
