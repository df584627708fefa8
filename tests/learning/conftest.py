"""A run to learn from, and an accident in the middle of learning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import atlas
from atlas.learning.explorer import Explorer
from tests.conftest import MakeOnce
from tests.test_vertical_slice import SMALL

# For tests of what is learned and not of what is shown
SILENT = ["logging.media.episode_logger.interval=0", "logging.media.vis_dataset.interval=0"]


@pytest.fixture(scope="session")
def first_run(cubes_dataset: Path, make_once: MakeOnce) -> Path:
    """A run of two steps, on demonstrations of the cubes world."""
    few = ["training.max_steps=2", "training.warmup_steps=1", "evaluation.episodes=0", "evaluation.final_episodes=0"]
    few += ["evaluation.execute=4"]

    def train(folder: Path) -> None:
        atlas.train(None, [*SMALL, *few, f"data.path={cubes_dataset}", f"output_dir={folder}", "run_name=first"])

    return make_once("learning", train) / "first"


@pytest.fixture
def break_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the decision of this number, of all that are played from now on, raise a RuntimeError."""

    def arrange(number: int) -> None:
        step, played = Explorer.step, [0]

        def breaks(self: Explorer, actions: np.ndarray) -> object:
            played[0] += 1
            if played[0] == number:
                raise RuntimeError("the lights went out")
            return step(self, actions)

        monkeypatch.setattr(Explorer, "step", breaks)

    return arrange
