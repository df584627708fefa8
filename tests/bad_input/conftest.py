"""The good inputs that get spoilt: made once, and copied for each row."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import atlas
from atlas.data.hdf5.libero_writer import write_libero_file
from tests.bad_input.table import SMALL, run_here
from tests.conftest import MakeOnce, made_up_episode
from tests.policies.test_vggt_backbone import backbone_config

TASKS = {"open the drawer": [12, 9, 11], "close the drawer": [10, 10]}
BACKBONE = [option for option in SMALL if not option.startswith(("model.vision", "data.image_size"))] + [
    *backbone_config()
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder, in which a command is run."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def good_data(make_once: MakeOnce) -> Path:
    """Two LIBERO files of made-up episodes; to read."""

    def make(root: Path) -> None:
        for number, (instruction, lengths) in enumerate(TASKS.items()):
            rng = np.random.default_rng(number)
            episodes = [made_up_episode(rng, instruction, length, i) for i, length in enumerate(lengths)]
            write_libero_file(root / f"task_{number}_demo.hdf5", instruction, episodes, {"env_name": "elsewhere"})

    return make_once("demos", make)


@pytest.fixture(scope="session")
def good_run(good_data: Path, make_once: MakeOnce) -> Path:
    """A run of two steps with an average of the weights, and checkpoints of both; to read."""

    def make(out: Path) -> None:
        places = [f"data.path={good_data}", f"output_dir={out}", "run_name=run"]
        atlas.train(None, [*SMALL, "checkpoint.save_interval=1", *places])

    return make_once("good_run", make) / "run"


@pytest.fixture(scope="session")
def good_cache(good_data: Path, make_once: MakeOnce) -> Path:
    """Features of all frames by a small backbone; to read."""

    def make(place: Path) -> None:
        place.mkdir()
        asked = ["data", "cache-features", "--cpu", "--out", "cache", f"data.path={good_data}", *BACKBONE]
        code, said = run_here(place, asked)
        assert code == 0, said

    return make_once("good_cache", make) / "cache"


@pytest.fixture
def copied(place: Path) -> Callable[[Path], Path]:
    """Copies a good input to where it can be spoilt."""

    def copy(good: Path) -> Path:
        return Path(shutil.copytree(good, place / good.name, symlinks=True))

    return copy


@pytest.fixture
def train_on(place: Path) -> Callable[..., Sequence[str]]:
    """The arguments of a training on a dataset that would be over soon."""

    def arguments(data: Path, *more: str) -> Sequence[str]:
        return ["train", "--cpu", *SMALL, f"data.path={data}", *more]

    return arguments
