"""Python processes that import nothing from the folder they are started in.

`python -m` and `python -c` look there first, so a user's own `atlas/`, `random.py` or `queue.py` would be imported
instead of the real one. Python 3.11 has $PYTHONSAFEPATH for this; this module also works on 3.10.
"""

from __future__ import annotations

import multiprocessing.util
import os
import site
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[3]
# What `python -m` does once the folder is off the path: before that, only the built-in sys is imported.
_START = (
    "import sys; sys.path[:1] = [p for p in sys.path[:1] if p]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_SAFE_PATH = "PYTHONSAFEPATH"


def module_command(module: str) -> list[str]:
    """The beginning of a command that runs a module, as `python -m module` does; its arguments follow."""
    return [sys.executable, "-u", "-c", _START, module]


def safe_environment(current: Mapping[str, str]) -> dict[str, str]:
    """The variables with which such a process finds this very package, and protects its own children too."""
    installed = {Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())}
    own = [] if _ROOT in installed else [str(_ROOT)]  # before the standard library, which other folders would shadow
    paths = [*own, *filter(None, current.get("PYTHONPATH", "").split(os.pathsep))]
    return {_SAFE_PATH: "1", **({"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))} if paths else {})}


@contextmanager
def safe_workers(version: tuple[int, ...] = sys.version_info[:2]) -> Iterator[None]:
    """Processes that multiprocessing spawns inside the block import modules only from this process's path."""
    if version >= (3, 11):
        before = os.environ.get(_SAFE_PATH)
        os.environ[_SAFE_PATH] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_SAFE_PATH]
            else:
                os.environ[_SAFE_PATH] = before
        return
    # Python 3.10 only has -I, which also drops $PYTHONPATH; workers receive this process's path anyway.
    flags = multiprocessing.util._args_from_interpreter_flags  # type: ignore[attr-defined]
    multiprocessing.util._args_from_interpreter_flags = lambda: ["-I", *flags()]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        multiprocessing.util._args_from_interpreter_flags = flags  # type: ignore[attr-defined]
