"""Environments in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atlas.errors import InputError
from atlas.rollout.workers import EnvironmentPool

STILL = np.zeros((3, 7))
SCRIPT = """
from atlas.rollout.workers import EnvironmentPool

print("the script runs", flush=True)
with EnvironmentPool("cubes", 32, 1) as pool:
    pool.reset(0, 5, "pick up the red cube", False)
    print(pool.ready()[0].observation.instruction)
"""


def test_workers_play_episodes_of_their_own() -> None:
    with EnvironmentPool("cubes", 32, 2) as pool:
        for worker, seed in enumerate((7, 8)):
            pool.reset(worker, seed, "pick up the green cube", film=worker == 1)
        starts: dict[int, object] = {}
        while len(starts) < 2:
            starts |= pool.ready()
        pool.run(1, STILL)
        segment = pool.ready()[1]

    assert not np.array_equal(starts[0].observation.proprio, starts[1].observation.proprio)  # type: ignore[attr-defined]
    assert (segment.steps, segment.done, segment.success) == (3, False, False)
    assert len(segment.frames) == 3 and segment.frames[0].shape == (256, 256, 3)
    assert segment.observation is not None


def test_what_goes_wrong_in_a_worker_is_told() -> None:
    with EnvironmentPool("cubes", 32, 1) as pool:
        pool.reset(0, 1, "pick up the red cube", film=False)
        pool.ready()
        pool.run(0, np.zeros((1, 3)))  # three numbers are no action
        with pytest.raises(RuntimeError, match="Traceback"):
            pool.ready()
    with EnvironmentPool("kitchen", 32, 1) as pool, pytest.raises(InputError, match="kitchen"):
        pool.ready()


def test_a_worker_that_dies_is_noticed() -> None:
    with EnvironmentPool("cubes", 32, 1) as pool:
        pool._processes[0].kill()
        with pytest.raises(RuntimeError, match="ended unexpectedly"):
            pool.ready()


def test_a_script_without_a_main_guard_is_not_run_again_by_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)

    found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # atlas may be this checkout, not installed
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=found)

    assert done.stdout.split("\n")[:2] == ["the script runs", "pick up the red cube"], done.stderr
