"""Where a number was measured: printed above every table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def describe() -> str:
    """One line: processor, cores, GPU, and the versions that matter."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "mujoco", "robosuite")
    )
    return f"{processor}, {len(os.sched_getaffinity(0))} cores, {gpu}; Python {platform.python_version()}, {packages}"
