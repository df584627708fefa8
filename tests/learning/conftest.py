"""A run to learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

import atlas
from tests.conftest import MakeOnce
from tests.test_vertical_slice import SMALL


@pytest.fixture(scope="session")
def first_run(cubes_dataset: Path, make_once: MakeOnce) -> Path:
    """A run of two steps, on demonstrations of the cubes world."""
    few = ["training.max_steps=2", "training.warmup_steps=1", "evaluation.episodes=0", "evaluation.final_episodes=0"]

    def train(folder: Path) -> None:
        atlas.train(None, [*SMALL, *few, f"data.path={cubes_dataset}", f"output_dir={folder}", "run_name=first"])

    return make_once("learning", train) / "first"
