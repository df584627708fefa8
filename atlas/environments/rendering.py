"""Rendering without a screen: chooses MuJoCo's GL backend and GPU before anything imports it, and explains failures."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atlas.errors import InputError, first_line
from atlas.system.process_control.notices import notice

if TYPE_CHECKING:
    import torch  # which simulators' processes do without

# The environment variables that decide how MuJoCo renders.
VARIABLES = (
    "MUJOCO_GL",
    "MUJOCO_EGL_DEVICE_ID",
    "PYOPENGL_PLATFORM",
    "EGL_PLATFORM",
    "__EGL_VENDOR_LIBRARY_FILENAMES",
    "LIBGL_ALWAYS_SOFTWARE",
    "DISPLAY",
)
_OURS = {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}  # the first is set here, the second then by MuJoCo
_INSTALL = "sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (Debian, Ubuntu)"
_CHOSEN, _VISIBLE = "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"
_GL_RENDERER = 0x1F01
_SOFTWARE = ("llvmpipe", "softpipe", "swrast")  # Mesa's drivers
_DRM_DEVICE_FILE = 0x3233  # of EGL_EXT_device_drm
_MOST_DEVICES = 64


def choose_renderer() -> None:
    """Make MuJoCo, if it is imported later, render off screen with EGL on Linux, where there is no display and the user
    has not chosen otherwise."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")


def prepare_rendering() -> None:
    """See `choose_renderer`; call it before `mujoco` or `robosuite` is imported.

    Raises InputError, which names the Debian packages, where EGL is chosen and not installed.
    """
    choose_renderer()
    if os.environ.get("MUJOCO_GL") == "egl":
        try:
            ctypes.CDLL("libEGL.so.1")
        except OSError:
            raise InputError(
                "No EGL library (libEGL.so.1) was found, and the simulator needs one to render without a screen. "
                "On Debian or Ubuntu: sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
            ) from None


def variables_set() -> dict[str, str]:
    """The variables of VARIABLES that the user has set."""
    present = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return {name: value for name, value in present.items() if _OURS.get(name) != value}


def describe_failure(why: str, set_here: Mapping[str, str], without: bool | None) -> tuple[str, str]:
    """(problem, remedy) for a simulator that cannot render.

    set_here: the variables that decide how it renders; without: whether it renders without them, None where not tried.
    """
    shown = ", ".join(f"{name}={value}" for name, value in set_here.items())
    seen = f"no picture of the simulated world: {why}" + (f" (with {shown})" if shown else "")
    if without:
        fix = f"It works without these variables: unset {' '.join(set_here)}."
    elif set_here and without is None:
        fix = f"Unset what you did not intend ({' '.join(set_here)}); `atlas doctor` tests whether it works without."
    elif sys.platform == "linux":
        fix = f"{_INSTALL}; with an NVIDIA GPU in a container also NVIDIA_DRIVER_CAPABILITIES=all."
    else:
        fix = "See https://mujoco.readthedocs.io on rendering."
    return seen, f"{fix} Training on files works without rendering, with evaluation.env=none."


@contextmanager
def failure_explained() -> Iterator[None]:
    """For the import of a simulator and the making of a renderer: any failure there becomes one InputError.

    GLFW's warnings, which say why it has no display, and the complaints of half-made objects at their removal are not
    printed.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except (InputError, ModuleNotFoundError):
            raise
        except Exception as error:  # from MuJoCo, robosuite, PyOpenGL, GLFW or ctypes
            hook = sys.unraisablehook
            sys.unraisablehook = lambda _: None
            try:
                traceback.clear_frames(error.__traceback__)
            finally:
                sys.unraisablehook = hook
            reasons = [str(w.message) for w in caught if "GLFW" in w.category.__name__]
            why = re.sub(r"\(\d+\) b'(.*)'", r"\1", reasons[0]) if reasons else first_line(error)
            seen, fix = describe_failure(why, variables_set(), None)
            raise InputError(f"{seen[0].upper()}{seen[1:]}. {fix}") from None
    for warning in caught:  # no failure: show the warnings to the user
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def quiet_robosuite() -> None:
    """Turn off robosuite's start-up warnings and its log file in /tmp, which fails where another user owns it.

    At import robosuite looks for a module with private settings; this provides one.
    """
    if "robosuite" in sys.modules:
        return
    private = types.ModuleType("robosuite.macros_private")
    private.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    private.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules["robosuite.macros_private"] = private


def in_software(renderer: str) -> bool:
    """Whether an OpenGL renderer of this name computes on the CPU."""
    return any(name in renderer.lower() for name in _SOFTWARE)


def software_renderer() -> str | None:
    """The software driver that drew this process's last image; None where a GPU drew it, or where nothing was drawn off
    screen."""
    backend = os.environ.get("MUJOCO_GL")
    if backend != "egl":
        return "OSMesa" if backend == "osmesa" and "mujoco" in sys.modules else None
    try:
        library = ctypes.CDLL("libEGL.so.1")
        for function in (library.eglGetCurrentContext, library.eglGetProcAddress):
            function.restype = ctypes.c_void_p
        found = library.eglGetProcAddress(b"glGetString") if library.eglGetCurrentContext() else None
    except (OSError, AttributeError):
        return None
    if found is None:
        return None
    name = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_uint)(found)(_GL_RENDERER)
    renderer = (name or b"").decode("utf-8", "replace")
    return renderer if in_software(renderer) else None


def tell_of_software(world: str, renderer: str | None) -> None:
    """Tell the user that a world is rendered in software. renderer: see `software_renderer`; None: say nothing."""
    if renderer is not None:
        notice("'%s' is rendered in software, by %s; `atlas doctor` says whether a GPU could.", world, renderer)


# ---- which GPU -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RenderingGPU:
    """A GPU as CUDA knows it. ordinal: its number among all of the machine. pci: its bus address, where torch knows
    it."""

    ordinal: int
    pci: str | None

    @classmethod
    def of(cls, device: torch.device) -> RenderingGPU | None:
        """The GPU of a torch device; None for other devices."""
        if device.type != "cuda":
            return None
        import torch

        number = device.index if device.index is not None else torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(number)
        domain, bus, slot = (getattr(properties, f"pci_{name}_id", None) for name in ("domain", "bus", "device"))
        pci = None if domain is None or bus is None or slot is None else f"{domain:04x}:{bus:02x}:{slot:02x}"
        named = _shown(number)
        return cls(number if named is None else named, pci)

    @classmethod
    def first_shown(cls) -> RenderingGPU | None:
        """The first GPU of CUDA_VISIBLE_DEVICES, for a process that does not use CUDA; None where it names none."""
        named = _shown(0)
        return None if named is None else cls(named, None)


def _shown(number: int) -> int | None:
    """The number, among all of the machine, of the GPU in this place of CUDA_VISIBLE_DEVICES; None where that does not
    name it by number."""
    shown = os.environ.get(_VISIBLE, "").split(",")
    named = shown[number].strip() if number < len(shown) else ""
    return int(named) if named.isdigit() else None


def render_on(gpu: RenderingGPU | None) -> None:
    """Make MuJoCo's EGL render on this GPU, in this process, which must not have imported MuJoCo yet.

    EGL counts devices in its own way. The right one has the GPU's bus address; where EGL gives no addresses, it is the
    one with the same number. The user's choice (MUJOCO_EGL_DEVICE_ID) stays, and so does MuJoCo's (the first device
    that works) where no device matches.
    """
    if gpu is None or os.environ.get("MUJOCO_GL", "egl") != "egl" or _CHOSEN in os.environ:
        return
    device = egl_device(gpu, egl_addresses())
    if device is not None:
        os.environ[_CHOSEN] = str(device)
        # This variable counts as CUDA does, and robosuite refuses a device that it does not name. Simulators do not
        # use CUDA.
        os.environ.pop(_VISIBLE, None)


@contextmanager
def rendering_beside(device: torch.device) -> Iterator[None]:
    """While a world is opened in a process that computes on this device: render on its GPU, or else on the first one
    that the process is shown. CUDA_VISIBLE_DEVICES is put back, for the processes that this one starts."""
    shown = os.environ.get(_VISIBLE)
    render_on(RenderingGPU.of(device) or RenderingGPU.first_shown())
    try:
        yield
    finally:
        if shown is not None:
            os.environ[_VISIBLE] = shown


def egl_device(gpu: RenderingGPU, addresses: list[str | None]) -> int | None:
    """The index of a GPU among EGL's devices; None where it cannot be determined. addresses: of EGL's devices, where
    known."""
    known = [place for place, address in enumerate(addresses) if address is not None]
    if gpu.pci is not None and known:
        return addresses.index(gpu.pci) if gpu.pci in addresses else None
    among = known or list(range(len(addresses)))
    return among[gpu.ordinal] if gpu.ordinal < len(among) else None


def egl_addresses() -> list[str | None]:
    """The bus address of each of EGL's devices, None where EGL or the system does not give it; empty without EGL."""
    try:
        library = ctypes.CDLL("libEGL.so.1")
        library.eglGetProcAddress.restype = ctypes.c_void_p
        found = [library.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglQueryDeviceStringEXT")]
    except (OSError, AttributeError):
        return []
    if None in found:
        return []
    devices, count = (ctypes.c_void_p * _MOST_DEVICES)(), ctypes.c_int(0)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(found[0])
    text = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)(found[1])
    if not query(_MOST_DEVICES, ctypes.addressof(devices), ctypes.addressof(count)):
        return []
    return [_address(text(device, _DRM_DEVICE_FILE)) for device in devices[: count.value]]


def _address(file: bytes | None, drm: Path = Path("/sys/class/drm")) -> str | None:
    """The bus address, such as '0000:3b:00', to which the system links a device file such as b'/dev/dri/card1'."""
    if file is None:
        return None
    link = drm / Path(os.fsdecode(file)).name / "device"
    return link.resolve().name.rsplit(".", 1)[0] if link.exists() else None
