"""Data that many tests share: recorded in the real simulator once a session, or made up in LIBERO's layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas.data.episode import RecordedEpisode
from atlas.data.libero_writer import write_libero_file

MakeLibero = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Models here are small: threads that wait for each other cost more than they do, above all on busy cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Atlas keeps of datasets it has read is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATLAS_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def stays_out_of_real_time() -> Iterator[None]:
    """No test makes this process real-time, as an encoder may: all that is started later would be so, too."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture(scope="session")
def cubes_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight episodes of the cubes world, recorded in the simulator at 32 pixels."""
    from atlas.rollout.record import RecordSettings, record

    out = tmp_path_factory.mktemp("demonstrations") / "cubes"
    record(RecordSettings(episodes=8, seed=3, image_size=32), out)
    return out


@pytest.fixture
def make_libero(tmp_path: Path) -> MakeLibero:
    """Writes a folder of made-up LIBERO files; each frame's images hold its episode's and its own number."""

    def make(tasks: dict[str, Sequence[int]] | None = None, size: int = 32, folder: str = "demos") -> Path:
        tasks = tasks or {"open the drawer": [12, 9, 11], "close the drawer": [10, 10]}
        root = tmp_path / folder
        for number, (instruction, lengths) in enumerate(tasks.items()):
            rng = np.random.default_rng(number)
            episodes = [made_up_episode(rng, instruction, length, i, size) for i, length in enumerate(lengths)]
            write_libero_file(root / f"task_{number}_demo.hdf5", instruction, episodes, {"env_name": "elsewhere"})
        return root

    return make


def made_up_episode(
    rng: np.random.Generator, instruction: str, length: int, number: int = 0, size: int = 32
) -> RecordedEpisode:
    """An episode of random numbers. Upright, the images' top left pixel is (episode, frame, 0 or 1 for the camera)."""
    images = {}
    for camera, name in enumerate(("agentview", "eye_in_hand")):
        frames = rng.integers(0, 255, (length, size, size, 3), dtype=np.uint8)
        frames[:, 0, 0] = [[number, t, camera] for t in range(length)]
        images[name] = frames
    actions = rng.uniform(-1, 1, (length, 7))
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1.0, 1.0)
    rewards = np.zeros(length, np.float32)
    rewards[-1] = 1
    return RecordedEpisode(
        instruction=instruction,
        images=images,
        proprio=rng.normal(size=(length, 8)).astype(np.float32),
        joints=rng.normal(size=(length, 7)),
        actions=actions,
        rewards=rewards,
        sim_states=rng.normal(size=(length, 5)),
        model_xml="<mujoco/>",
    )
