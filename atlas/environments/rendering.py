"""Rendering without a screen: choose MuJoCo's GL backend before anything imports it, and say why it fails."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import traceback
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from atlas.errors import InputError, first_line

# What decides how MuJoCo renders.
VARIABLES = (
    "MUJOCO_GL",
    "MUJOCO_EGL_DEVICE_ID",
    "PYOPENGL_PLATFORM",
    "EGL_PLATFORM",
    "__EGL_VENDOR_LIBRARY_FILENAMES",
    "LIBGL_ALWAYS_SOFTWARE",
    "DISPLAY",
)
_OURS = {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}  # what is set here, and by MuJoCo after it
_INSTALL = "sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (Debian, Ubuntu)"


def prepare_rendering() -> None:
    """Make MuJoCo render off screen; must run before `mujoco` or `robosuite` is imported.

    Sets MUJOCO_GL=egl on Linux when there is no display and the user has chosen nothing else.
    Raises InputError, naming the Debian package, where EGL is to be used and not installed.
    """
    if sys.platform == "linux" and "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    if os.environ.get("MUJOCO_GL") == "egl":
        try:
            ctypes.CDLL("libEGL.so.1")
        except OSError:
            raise InputError(
                "No EGL library (libEGL.so.1) was found, and the simulator needs one to render without a screen. "
                "On Debian or Ubuntu: sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
            ) from None


def variables_set() -> dict[str, str]:
    """What somebody else has set of the variables that decide how MuJoCo renders."""
    there = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return {name: value for name, value in there.items() if _OURS.get(name) != value}


def describe_failure(why: str, set_here: Mapping[str, str], without: bool | None) -> tuple[str, str]:
    """What is wrong where no picture comes out, and what to do about it.

    set_here: variables that decide how it renders; without: whether it renders when they are unset, if tried.
    """
    shown = ", ".join(f"{name}={value}" for name, value in set_here.items())
    seen = f"no picture of the simulated world: {why}" + (f" (with {shown})" if shown else "")
    if without:
        fix = f"It works without: unset {' '.join(set_here)}."
    elif set_here and without is None:
        fix = f"Unset what is not meant ({' '.join(set_here)}); `atlas doctor` tries whether it works without."
    elif sys.platform == "linux":
        fix = f"{_INSTALL}; with an NVIDIA GPU in a container also NVIDIA_DRIVER_CAPABILITIES=all."
    else:
        fix = "See https://mujoco.readthedocs.io on rendering."
    return seen, f"{fix} Training on files works meanwhile, with evaluation.env=none."


@contextmanager
def failure_explained() -> Iterator[None]:
    """Around what imports the simulator and makes a renderer: whatever goes wrong there becomes one InputError.

    GLFW says in warnings why it has no display. What is half made complains when it is removed: neither is printed.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except (InputError, ModuleNotFoundError):
            raise
        except Exception as error:  # of MuJoCo, robosuite, PyOpenGL, GLFW and ctypes
            hook = sys.unraisablehook
            sys.unraisablehook = lambda _: None
            try:
                traceback.clear_frames(error.__traceback__)
            finally:
                sys.unraisablehook = hook
            said = [str(w.message) for w in caught if "GLFW" in w.category.__name__]
            why = re.sub(r"\(\d+\) b'(.*)'", r"\1", said[0]) if said else first_line(error)
            seen, fix = describe_failure(why, variables_set(), None)
            raise InputError(f"{seen[0].upper()}{seen[1:]}. {fix}") from None
    for warning in caught:  # all is well: they are the user's
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def quiet_robosuite() -> None:
    """Stop robosuite's start-up warnings and its log file in /tmp, which fails where another user owns it.

    robosuite looks for a module of private settings at import; this provides one.
    """
    if "robosuite" in sys.modules:
        return
    private = types.ModuleType("robosuite.macros_private")
    private.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    private.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules["robosuite.macros_private"] = private
