"""Rendering: does a real picture of the simulated world come out."""

from __future__ import annotations

import importlib.util
import os
import sys

from atlas.doctor.child import Tried, try_module
from atlas.doctor.finding import Finding

_SECONDS = 180.0
# What decides how MuJoCo renders.
_VARIABLES = (
    "MUJOCO_GL",
    "MUJOCO_EGL_DEVICE_ID",
    "PYOPENGL_PLATFORM",
    "EGL_PLATFORM",
    "__EGL_VENDOR_LIBRARY_FILENAMES",
    "LIBGL_ALWAYS_SOFTWARE",
    "DISPLAY",
)
_INSTALL = "sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (Debian, Ubuntu)"
_SOFTWARE = ("llvmpipe", "softpipe", "swrast")


def check_rendering() -> Finding:
    """The default job's demonstrations, and evaluation in the simulator, need pictures without a screen."""
    missing = [name for name in ("mujoco", "robosuite") if importlib.util.find_spec(name) is None]
    if missing:
        seen = f"the simulator is not installed ({', '.join(missing)})"
        fix = "For the default job and for evaluation: pip install 'atlas-vla[sim]'. Training on files does without."
        return Finding("rendering", "warning", seen, fix, {"installed": False})
    tried = try_module("atlas.doctor.probes", ["rendering"], _SECONDS)
    if tried.worked:
        return judge_picture(tried)
    set_here = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return judge_failure(tried.why, set_here, None if not set_here else _try_without())


def judge_picture(tried: Tried) -> Finding:
    """Of a picture that came out."""
    found = tried.answer
    renderer = found["renderer"] or "unknown"
    slow = " in software" if any(name in renderer.lower() for name in _SOFTWARE) else ""
    seen = f"the cubes world was drawn{slow}, by {found['backend']} on {renderer}"
    return Finding("rendering", "ok", seen, None, {"installed": True, **found})


def judge_failure(why: str, set_here: dict[str, str], without: bool | None) -> Finding:
    """set_here: variables that decide how it renders; without: whether it renders when they are unset, if tried."""
    shown = ", ".join(f"{name}={value}" for name, value in set_here.items())
    seen = f"no picture of the simulated world: {why}" + (f" (with {shown})" if shown else "")
    if without:
        fix = f"It works without: unset {' '.join(set_here)}."
    elif sys.platform == "linux":
        fix = f"{_INSTALL}; with an NVIDIA GPU in a container also NVIDIA_DRIVER_CAPABILITIES=all."
    else:
        fix = "See https://mujoco.readthedocs.io on rendering."
    fix += " Training on files works meanwhile, with evaluation.env=none."
    return Finding("rendering", "problem", seen, fix, {"installed": True, "error": why, "environment": set_here})


def _try_without() -> bool:
    return try_module("atlas.doctor.probes", ["rendering"], _SECONDS, dict.fromkeys(_VARIABLES)).worked
