"""Steps of every kind of policy on a CUDA device that computes nothing, in a process of its own.

python -m tests.fake_cuda.process LIBRARY FOLDER POLICIES..., where LIBRARY is device.cpp compiled: writes
FOLDER/found.json.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path


def load_device(library: Path) -> None:
    """Before torch is imported: torch's own start would otherwise find that there is no CUDA."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    libraries = Path(spec.origin).parent / "lib"
    for file in (*libraries.glob("libgomp*"), libraries / "libc10.so", libraries / "libtorch_cpu.so", library):
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


if __name__ == "__main__":
    load_device(Path(sys.argv[1]))
    from tests.fake_cuda.steps import run_all

    folder = Path(sys.argv[2])
    (folder / "found.json").write_text(json.dumps(run_all(folder, sys.argv[3:])))
