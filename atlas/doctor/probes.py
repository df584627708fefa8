"""The doctor's trials in separate processes: `python -m atlas.doctor.probes FILE NAME`.

Each writes its result to the file.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from atlas.doctor.child import answer

_PICTURE = 64  # pixels
_SERVER_SECONDS = 5.0
_LEAST_CONTRAST = 5.0  # standard deviation of the picture's values, of 255


def probe_torch() -> dict[str, Any]:
    """torch's versions, and the GPUs that it can use."""
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as caught:  # torch says in a warning why it sees no GPU
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    why = str(caught[-1].message).splitlines()[0] if caught else None
    nccl = torch.cuda.nccl.version() if torch.version.cuda and torch.distributed.is_nccl_available() else None
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "gpus": [_gpu(i) for i in range(count)],
        "peers": [[i == j or torch.cuda.can_device_access_peer(i, j) for j in range(count)] for i in range(count)],
        "error": why,
    }


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    major = properties.major
    # Code for sm_80 runs on sm_86, and PTX for compute_80 is compiled for anything newer.
    built = [arch.split("_") for arch in torch.cuda.get_arch_list()]
    numbers = [(kind, int("".join(c for c in number if c.isdigit()))) for kind, number in built]
    own = 10 * major + properties.minor
    fits = any(kind == "sm" and number // 10 == major and number <= own for kind, number in numbers)
    fits = fits or any(kind == "compute" and number <= own for kind, number in numbers)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{major}.{properties.minor}",
        "bf16": major >= 8,
        "supported": fits,
    }


def probe_rendering() -> dict[str, Any]:
    """Render a picture of the cubes world off screen; returns the renderer and the picture's contrast."""
    import os

    from atlas.environments.catalog import make_environment

    world = make_environment("cubes", _PICTURE)
    observation = world.reset(seed=0)
    image = observation.images["agentview"]
    from OpenGL import GL  # type: ignore[import-untyped]

    renderer = GL.glGetString(GL.GL_RENDERER)
    world.close()
    contrast = float(image.std())
    if contrast < _LEAST_CONTRAST:
        raise RuntimeError(f"the picture is empty: its values differ by {contrast:.1f} of 255")
    return {
        "backend": os.environ.get("MUJOCO_GL", "chosen by MuJoCo"),
        "renderer": renderer.decode() if renderer else None,
        "contrast": contrast,
    }


def probe_wandb() -> dict[str, Any]:
    """wandb's version and server, whether there is a key (never the key itself), and whether the server answers."""
    from atlas.registry.client import base_url, end_service, find_wandb

    wandb = find_wandb()
    if wandb is None:
        return {"version": None}
    wandb.setup(wandb.Settings(silent=True))
    server = base_url(wandb)
    error = _reach(server)
    key = bool(wandb.login(prompt=False, verify=False))
    end_service(wandb)
    return {"version": wandb.__version__, "server": server, "key": key, "error": error}


def _reach(server: str) -> str | None:
    """The reason that a server does not answer; None if it answers."""
    import urllib.error
    import urllib.request

    problems = [f"no answer within {_SERVER_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(server, timeout=_SERVER_SECONDS).close()
            problems.clear()
        except urllib.error.HTTPError:
            problems.clear()  # it has answered
        except (OSError, ValueError) as problem:
            problems[:] = [str(getattr(problem, "reason", problem))]

    # In a thread that may be left behind: looking up a name has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SERVER_SECONDS)
    return problems[0] if problems else None


_PROBES = {"torch": probe_torch, "rendering": probe_rendering, "wandb": probe_wandb}

if __name__ == "__main__":
    answer(sys.argv[1], _PROBES[sys.argv[2]])
