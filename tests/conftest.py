"""What many tests share, so that none of it is made twice.

Data: `cubes_dataset`, recorded in the real simulator; `make_libero`, made up in LIBERO's layout; in tests/bad_input
`good_data`, `good_run` and `good_cache`, a small dataset, a run of two steps with its checkpoints, and cached features.
Do not change them: a test that needs a change makes a copy. What takes long to make and many files need is made with
`make_once`, by one of pytest's processes for all of them.

Processes: `tests.warm` starts one within a tenth of a second that has torch and Atlas already imported, which takes a
new interpreter many seconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# Before torch is imported: models here are small, and threads that wait for each other cost more than they gain,
# especially on busy cores. Processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from atlas.data.episode import RecordedEpisode
from atlas.data.hdf5.libero_writer import write_libero_file

# A shell that starts the tests in the background, or nohup, would make them and all their processes ignore these.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# wandb fetches some things in threads of its own, which go on asking after their test has ended and its server with it.
# What they say would be taken for the words of whichever test runs by then.
logging.getLogger("urllib3").setLevel(logging.ERROR)

_VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")

MakeLibero = Callable[..., Path]
MakeOnce = Callable[[str, Callable[[Path], object]], Path]

# These begin, so that no pytest process is left alone with one of them at the end.
_LONG_FILES = """
    test_wandb_dies.py test_guides.py test_wandb_starts.py test_online_training.py test_blocks.py test_vggt_backbone.py
    test_failing_ranks.py test_nodes.py test_wandb_sweeps.py test_sweep.py test_wandb_sink.py
""".split()

_SLOW_SECONDS = 2400  # of a test that is marked slow, beside other work


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, in the order above; the others keep theirs. Slow tests have more time."""
    places = {name: place for place, name in enumerate(_LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SLOW_SECONDS))


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Whatever the user has set: this process shares the machine with others."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shared by all of pytest's processes, if there are several."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def make_once(shared_folder: Path) -> MakeOnce:
    """`make_once(name, make)`: the folder that `make` fills, called by the first that asks for it."""

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared_folder / name, shared_folder / f"{name}.made"
        with (shared_folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache of datasets that Atlas has read is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATLAS_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def stays_out_of_real_time() -> Iterator[None]:
    """No test makes this process real-time, as an encoder may: everything started later would be so, too."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture(autouse=True)
def gpus_stay_visible() -> Iterator[None]:
    """Training on the CPU hides the GPUs from this process, and the next test would not find its renderer's GPU."""
    yield
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if _VISIBLE is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _VISIBLE


@pytest.fixture(scope="session", autouse=True)
def own_fonts(shared_folder: Path) -> Iterator[None]:
    """matplotlib looks for fonts, which takes it seconds, only once, rather than for every test's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(shared_folder / "matplotlib"))
        yield


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command in this process; returns the exit code."""

    def run(*arguments: str) -> int:
        from atlas import cli

        monkeypatch.setattr(sys, "argv", ["atlas", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert isinstance(stop.value.code, int)
        return stop.value.code

    return run


@pytest.fixture(scope="session")
def cubes_dataset(make_once: MakeOnce) -> Path:
    """Eight episodes of the cubes world, recorded in the simulator at 32 pixels."""
    from atlas.rollout.recording import RecordSettings, record

    return make_once("cubes", lambda folder: record(RecordSettings(episodes=8, seed=3, image_size=32), folder))


@pytest.fixture
def make_libero(tmp_path: Path) -> MakeLibero:
    """Writes a folder of made-up LIBERO files; each frame's images hold its episode's and its own number."""

    def make(tasks: dict[str, Sequence[int]] | None = None, size: int = 32, folder: str = "demos") -> Path:
        tasks = tasks or {"open the drawer": [12, 9, 11], "close the drawer": [10, 10]}
        root = tmp_path / folder
        write_made_up_libero(root, tasks, size)
        return root

    return make


def write_made_up_libero(root: Path, tasks: Mapping[str, Sequence[int]], size: int = 32) -> None:
    """A folder with a file of made-up episodes for each task: {instruction: the lengths of its episodes}."""
    for number, (instruction, lengths) in enumerate(tasks.items()):
        rng = np.random.default_rng(number)
        episodes = [made_up_episode(rng, instruction, length, i, size) for i, length in enumerate(lengths)]
        write_libero_file(root / f"task_{number}_demo.hdf5", instruction, episodes, {"env_name": "elsewhere"})


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
