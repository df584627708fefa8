"""Which GPU a simulator renders on: that of the process whose policy it is for."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # which simulators' processes do without

_CHOSEN, _VISIBLE = "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"
_DRM_DEVICE_FILE = 0x3233  # of EGL_EXT_device_drm
_MOST_DEVICES = 64


@dataclass(frozen=True)
class RenderingGPU:
    """A GPU as CUDA knows it. ordinal: among all of the machine. pci: its bus address, where torch says it."""

    ordinal: int
    pci: str | None

    @classmethod
    def of(cls, device: torch.device) -> RenderingGPU | None:
        """The one that a process computes on; None where it computes on CPUs."""
        if device.type != "cuda":
            return None
        import torch

        number = device.index if device.index is not None else torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(number)
        domain, bus, slot = (getattr(properties, f"pci_{name}_id", None) for name in ("domain", "bus", "device"))
        pci = None if domain is None or bus is None or slot is None else f"{domain:04x}:{bus:02x}:{slot:02x}"
        shown = os.environ.get(_VISIBLE, "").split(",")
        named = shown[number].strip() if number < len(shown) else ""
        return cls(int(named) if named.isdigit() else number, pci)


def render_on(gpu: RenderingGPU | None) -> None:
    """Have MuJoCo's EGL render on this GPU, in this process, which must not have imported MuJoCo yet.

    EGL counts devices by itself. Its device is the one with the GPU's bus address; where EGL says no addresses, the one
    of the same number. A choice of the user's (MUJOCO_EGL_DEVICE_ID) stays; so does MuJoCo's own, the first that works,
    where there is no such device.
    """
    if gpu is None or os.environ.get("MUJOCO_GL", "egl") != "egl" or _CHOSEN in os.environ:
        return
    device = egl_device(gpu, egl_addresses())
    if device is not None:
        os.environ[_CHOSEN] = str(device)
        # It is of CUDA's counting. robosuite refuses a device that is not named there; simulators have no use for CUDA.
        os.environ.pop(_VISIBLE, None)


def egl_device(gpu: RenderingGPU, addresses: list[str | None]) -> int | None:
    """Which of EGL's devices a GPU is; None where that cannot be told. addresses: of EGL's devices, where known."""
    known = [place for place, address in enumerate(addresses) if address is not None]
    if gpu.pci is not None and known:
        return addresses.index(gpu.pci) if gpu.pci in addresses else None
    among = known or list(range(len(addresses)))
    return among[gpu.ordinal] if gpu.ordinal < len(among) else None


def egl_addresses() -> list[str | None]:
    """The bus address of each of EGL's devices, as far as EGL and the system say it; empty without EGL."""
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
    """'0000:3b:00' of b'/dev/dri/card1', as the system links the one to the other."""
    if file is None:
        return None
    link = drm / Path(os.fsdecode(file)).name / "device"
    return link.resolve().name.rsplit(".", 1)[0] if link.exists() else None
