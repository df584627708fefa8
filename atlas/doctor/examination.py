"""Runs all checks of the machine in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from atlas.doctor.child import try_module
from atlas.doctor.gpus import check_gpus, check_torch
from atlas.doctor.machine import (
    check_cache,
    check_cores,
    check_memory,
    check_outputs,
    check_packages,
    check_platform,
    check_shared_memory,
)
from atlas.doctor.processes import check_nccl, check_processes
from atlas.doctor.verdict import Finding
from atlas.doctor.wandb_server import check_wandb
from atlas.doctor.world import check_rendering

_TRAINING_SECONDS = 300.0


@dataclass(frozen=True)
class Check:
    """name: as in its findings; does: the announcement of a check that takes seconds."""

    name: str
    look: Callable[[], Finding]
    does: str | None = None


def check_training() -> Finding:
    """Train, validate, write a checkpoint and load it, in a temporary folder; on a GPU where there is one."""
    trial = try_module("atlas.doctor.tiny_job", [], _TRAINING_SECONDS, {"WANDB_MODE": "disabled"})
    if trial.worked:
        found = trial.answer
        summary = f"{found['steps']} steps on {found['device']}, loss {found['loss']:.3f}, and a checkpoint that loads"
        return Finding("training", "ok", summary, None, found)
    fix = "Solve the problems above first. If there are none, this is a bug: report it with `atlas doctor --json`."
    return Finding("training", "problem", f"a tiny job failed: {trial.why}", fix, {"error": trial.why})


CHECKS = (
    Check("platform", check_platform),
    Check("packages", check_packages),
    Check("gpus", check_gpus),
    Check("torch", check_torch, "importing torch"),
    Check("cores", check_cores),
    Check("memory", check_memory),
    Check("shared_memory", check_shared_memory),
    Check("outputs", check_outputs),
    Check("cache", check_cache),
    Check("rendering", check_rendering, "drawing a picture of the simulated world"),
    Check("wandb", check_wandb, "asking wandb"),
    Check("processes", check_processes, "summing over two processes"),
    Check("nccl", check_nccl, "summing over the GPUs, where there are several"),
    Check("training", check_training, "training a tiny job"),
)


def examine(checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """The findings, each as soon as it is ready; announces slow checks on stderr."""
    for check in checks:
        if check.does is not None:
            print(f"{check.name}: {check.does} ...", file=sys.stderr, flush=True)
        yield _look(check)


def _look(check: Check) -> Finding:
    try:
        return check.look()
    except Exception as error:  # the check itself may need what is broken
        why = str(error) if isinstance(error, ImportError) else type(error).__name__
        summary = f"could not be checked ({why})"
        return Finding(check.name, "warning", summary, "Solve the problems with the packages first.")


def can_train(findings: Sequence[Finding]) -> bool:
    """Whether everything that training needs works."""
    return all(finding.status != "problem" for finding in findings)
