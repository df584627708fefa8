"""One run of a grid, in a process that does not outlive the grid: `python -m atlas.cli.grid_point train …`.

The grid holds the other end of this process's standard input, and never writes to it. When that end closes, the grid is
gone, for whatever reason, and the run is asked to stop as a user would ask it. (Linux's PR_SET_PDEATHSIG would ask once
for every thread of the grid, and a second SIGTERM is no longer a request.)
"""

from __future__ import annotations

import os
import signal
import threading


def main() -> None:
    watched = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_stop_with_the_grid, args=(watched,), name="atlas-grid", daemon=True).start()
    from atlas.cli import main as atlas

    atlas()


def _stop_with_the_grid(watched: int) -> None:
    os.read(watched, 1)  # returns at its end
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":  # spawned processes import this module again
    main()
