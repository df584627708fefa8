"""Rendering without a screen: choose MuJoCo's GL backend before anything imports it."""

from __future__ import annotations

import ctypes
import os
import sys
import types

from atlas.errors import InputError


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
