"""Environments in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atlas.environments.cubes import HORIZON
from atlas.environments.rendering import RenderingGPU, in_software
from atlas.errors import InputError
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.episode_player import Segment
from atlas.rollout.traces import FilmOrder
from atlas.rollout.workers import EnvironmentPool, WorkerDied
from atlas.system.process_control.notices import said_once

STILL = np.zeros((50, 7))
RED = PlannedEpisode(0, 1, "pick up the red cube")
SCRIPT = """
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.workers import EnvironmentPool

print("the script runs", flush=True)
with EnvironmentPool("cubes", 32, 1) as pool:
    pool.begin(0, PlannedEpisode(0, 5, "pick up the red cube"))
    print(pool.ready()[0].observation.instruction)
"""


def start(pool: EnvironmentPool, record: bool = False) -> dict[int, Segment]:
    """Begin an episode on every worker."""
    for worker in range(len(pool)):
        pool.begin(worker, PlannedEpisode(worker, 7 + worker, "pick up the green cube"), record)
    starts: dict[int, Segment] = {}
    while len(starts) < len(pool):
        starts |= pool.ready()
    return starts


def run_to_the_end(pool: EnvironmentPool, worker: int) -> Segment:
    segment = Segment(None)
    while not segment.done:
        pool.run(worker, STILL)
        segment = pool.ready()[worker]
    return segment


def test_workers_play_episodes_of_their_own(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Also where they render on the GPU of a process that is shown another one than the first: by EGL's counting."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with caplog.at_level("INFO"), said_once(), EnvironmentPool("cubes", 32, 2, RenderingGPU(0, None)) as pool:
        starts = start(pool)
        pool.run(1, STILL[:3])
        segment = pool.ready()[1]

    first, second = (starts[worker].observation for worker in (0, 1))
    assert first is not None and second is not None and not np.array_equal(first.proprio, second.proprio)
    assert (segment.steps, segment.done, segment.success) == (3, False, False)
    assert segment.observation is not None and segment.trace is None
    said = [record.message for record in caplog.records if "in software" in record.message]
    assert all(in_software(line) for line in said)
    assert len(said) == 1 or list(Path("/dev").glob("nvidia[0-9]*"))  # once for both workers


def test_a_worker_films_an_episode_that_is_over(tmp_path: Path) -> None:
    """Whichever worker played it, and as often as asked for; what cannot be written is said and ends nothing."""
    with EnvironmentPool("cubes", 32, 2) as pool:
        start(pool, record=True)
        trace = run_to_the_end(pool, 1).trace
        assert trace is not None and len(trace) == HORIZON == len(trace.scenes) - 1

        film = tmp_path / "film.mp4"
        pool.film(0, FilmOrder(film, trace, "pick up the green cube", verdict="failure", most_pictures=20))
        made = pool.filmed()
        pool.film(0, FilmOrder(film / "not a folder.mp4", trace, "pick up the green cube", "failure", most_pictures=20))
        failed = pool.filmed()
        again = start(pool)

    assert made == {0: None} and film.stat().st_size > 1000
    assert "FileExistsError" in str(failed[0]) and list(tmp_path.iterdir()) == [film]
    assert again[0].observation is not None


def test_what_goes_wrong_in_a_worker_is_told() -> None:
    with EnvironmentPool("cubes", 32, 1) as pool:
        pool.begin(0, RED)
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


def test_answers_beside_a_death_are_not_lost() -> None:
    """And a worker that is started again plays on."""
    with EnvironmentPool("cubes", 32, 2) as pool:
        start(pool)
        pool.run(1, STILL[:3])
        while not pool._connections[1].poll(0.05):
            pass
        pool._processes[0].kill()
        pool._processes[0].join()

        answers = pool.ready()
        with pytest.raises(WorkerDied, match="exit code -9") as died:
            pool.ready()
        pool.restart(died.value.worker)
        pool.begin(0, RED)

        assert answers.keys() == {1} and answers[1].steps == 3
        assert pool.ready()[0].observation is not None


def test_a_script_without_a_main_guard_is_not_run_again_by_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)

    found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # atlas may be this checkout, not installed
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=found)

    assert done.stdout.split("\n")[:2] == ["the script runs", "pick up the red cube"], done.stderr
