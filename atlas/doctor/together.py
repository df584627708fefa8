"""Several processes that add up their numbers: `python -m atlas.doctor.together FILE BACKEND PROCESSES`.

They are started as those of a training are, and leave the answer in the file.
"""

from __future__ import annotations

import sys

from atlas.launch import Plan, launch_ranks

if __name__ == "__main__":
    file, backend, processes = sys.argv[1:]
    plan = Plan(int(processes), cpu=backend == "gloo")
    sys.exit(launch_ranks([file, backend], plan, "atlas.doctor.all_reduce"))
