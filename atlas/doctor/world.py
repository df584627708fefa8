"""Checks whether the simulated world can be rendered."""

from __future__ import annotations

import importlib.util
import os

from atlas.doctor.child import Trial, try_module
from atlas.doctor.gpus import read_gpus
from atlas.doctor.verdict import Finding
from atlas.environments.rendering import VARIABLES, describe_failure, in_software

_SECONDS = 180.0


def check_rendering() -> Finding:
    """Render without a screen, which the default job's demonstrations and evaluation in the simulator need."""
    missing = [name for name in ("mujoco", "robosuite") if importlib.util.find_spec(name) is None]
    if missing:
        summary = f"the simulator is not installed ({', '.join(missing)})"
        fix = (
            "For the default job and for evaluation: pip install 'atlas-vla[sim]'. Training on files does not need it."
        )
        return Finding("rendering", "warning", summary, fix, {"installed": False})
    trial = try_module("atlas.doctor.probes", ["rendering"], _SECONDS)
    if trial.worked:
        return judge_picture(trial, len(read_gpus().gpus))
    set_here = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return judge_failure(trial.why, set_here, None if not set_here else _try_without())


def judge_picture(trial: Trial, gpus: int) -> Finding:
    """The finding for a picture that was rendered. gpus: the number of the machine's GPUs, which could render it."""
    found = trial.answer
    renderer = found["renderer"] or "unknown"
    software = in_software(renderer)
    summary = f"the cubes world was drawn{' in software' if software else ''}, by {found['backend']} on {renderer}"
    details = {"installed": True, **found}
    if software and gpus:
        fix = (
            f"The {gpus} GPU{'s' if gpus > 1 else ''} here would be many times faster: NVIDIA's EGL is missing. In a "
            "container set NVIDIA_DRIVER_CAPABILITIES=all; elsewhere install the driver's libnvidia-gl, and check that "
            "nothing sets LIBGL_ALWAYS_SOFTWARE or __EGL_VENDOR_LIBRARY_FILENAMES."
        )
        return Finding("rendering", "warning", f"{summary}, beside {gpus} GPU{'s' if gpus > 1 else ''}", fix, details)
    return Finding("rendering", "ok", summary, None, details)


def judge_failure(why: str, set_here: dict[str, str], without: bool | None) -> Finding:
    """set_here: the environment variables that decide how it renders; without: whether it renders without them, None if
    that was not tried."""
    summary, fix = describe_failure(why, set_here, bool(without))
    return Finding("rendering", "problem", summary, fix, {"installed": True, "error": why, "environment": set_here})


def _try_without() -> bool:
    return try_module("atlas.doctor.probes", ["rendering"], _SECONDS, dict.fromkeys(VARIABLES)).worked
