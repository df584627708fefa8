"""What every format of datasets promises, whatever it looks like on disk."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset as open_with
from atlas.data.orientation import ORIENTATIONS, turn_upright
from atlas.data.sampling.chunks import ChunkDataset
from atlas.errors import InputError
from tests.conftest import MakeLibero
from tests.data.hdf5_files import as_robomimic
from tests.data.lerobot_folders import FIXTURES, IMAGE, VIDEO, as_version_2, copy_fixture

Write = Callable[[Path, MakeLibero], Path]
FORMATS: dict[str, Write] = {
    "libero-hdf5": lambda tmp_path, make_libero: make_libero(),
    "lerobot-v3.0 with videos": lambda tmp_path, _: copy_fixture(VIDEO, tmp_path / "set"),
    "lerobot-v3.0 with images": lambda tmp_path, _: copy_fixture(IMAGE, tmp_path / "set"),
    "lerobot-v2.1 with videos": lambda tmp_path, _: as_version_2(FIXTURES / VIDEO, tmp_path / "set"),
    "lerobot-v2.1 with images": lambda tmp_path, _: as_version_2(FIXTURES / IMAGE, tmp_path / "set"),
    "robomimic-hdf5": lambda tmp_path, make_libero: as_robomimic(make_libero(folder="robomimic")),
    "lerobot-v2.0 with images": lambda tmp_path, _: as_version_2(FIXTURES / IMAGE, tmp_path / "set", "v2.0"),
}


def open_dataset(path: Path, **options: Any) -> EpisodeDataset:
    """What each format needs is said: robomimic's has no instruction."""
    robomimic = any(file.name.endswith("_robomimic.hdf5") for file in path.glob("*"))
    return open_with(path, instruction="lift the cube" if robomimic else None, **options)


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path: Path, make_libero: MakeLibero) -> Path:
    """A small dataset in each of the formats."""
    return FORMATS[request.param](tmp_path, make_libero)


def test_the_format_and_its_version_are_known(request: pytest.FixtureRequest, path: Path) -> None:
    assert request.node.callspec.params["path"].startswith(open_dataset(path).format)


def test_an_episode_is_what_the_dataset_says_of_it(path: Path) -> None:
    dataset = open_dataset(path)

    assert dataset.cameras == ["agentview", "eye_in_hand"] and len(dataset) == len(dataset.lengths)
    for number in range(len(dataset)):
        episode = dataset.episode(number)
        assert len(episode) == dataset.lengths[number]
        assert episode.instruction == dataset.tasks[dataset.task_of[number]]
        for values, width in ((episode.actions, dataset.action_spec.dim), (episode.proprio, dataset.proprio_dim)):
            assert values.shape == (len(episode), width) and values.dtype == np.float32
            assert np.isfinite(values).all()
    assert sorted(set(dataset.task_of.tolist())) == list(range(len(dataset.tasks)))


def test_images_come_in_the_order_asked_for(path: Path) -> None:
    dataset = open_dataset(path)
    episode = dataset.episode(1)

    for camera in dataset.cameras:
        images = episode.images(camera, [4, 0, 4, 2])
        assert images.shape == (4, *dataset.image_size(camera), 3) and images.dtype == np.uint8
        for image, frame in zip(images, [4, 0, 4, 2], strict=True):
            np.testing.assert_array_equal(image, episode.images(camera, [frame])[0])
        assert not np.array_equal(images[0], images[1])


def test_images_of_several_episodes_come_at_once(path: Path) -> None:
    dataset = open_dataset(path)
    episodes, frames = np.array([1, 0, 1, 0, 1]), np.array([4, 2, 0, 3, 4])

    for camera in dataset.cameras:
        images = dataset.images(camera, episodes, frames)
        assert images.shape == (5, *dataset.image_size(camera), 3)
        for image, number, frame in zip(images, episodes.tolist(), frames.tolist(), strict=True):
            np.testing.assert_array_equal(image, dataset.episode(number).images(camera, [frame])[0])


def test_cameras_and_episodes_are_not_mixed_up(path: Path) -> None:
    dataset = open_dataset(path)

    first, second = (dataset.episode(0).images(camera, [1]) for camera in dataset.cameras)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, dataset.episode(1).images(dataset.cameras[0], [1]))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_come_out_upright_from_the_orientation_that_is_stated(path: Path, orientation: str) -> None:
    stored = open_dataset(path, orientation="upright").episode(0).images("agentview", [2, 3])

    turned = open_dataset(path, orientation=orientation).episode(0).images("agentview", [2, 3])  # type: ignore[arg-type]

    np.testing.assert_array_equal(turned, turn_upright(stored, orientation))  # type: ignore[arg-type]


def test_a_dataset_travels_to_worker_processes(path: Path) -> None:
    dataset = open_dataset(path)
    before = read_some(dataset)

    travelled = pickle.loads(pickle.dumps(dataset))

    for mine, theirs in zip(before, read_some(travelled), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_forked_workers_read_the_same(path: Path) -> None:
    dataset = open_dataset(path)
    before = read_some(dataset)  # so that there are open files to inherit

    with multiprocessing.get_context("fork").Pool(1) as pool:
        theirs = pool.apply(read_some, (dataset,))

    for mine, worker in zip(before, theirs, strict=True):
        np.testing.assert_array_equal(mine, worker)


def test_spawned_workers_read_the_same(tmp_path: Path, make_libero: MakeLibero) -> None:
    datasets = [open_dataset(write(tmp_path / name, make_libero)) for name, write in FORMATS.items()]
    before = [read_some(dataset) for dataset in datasets]

    with multiprocessing.get_context("spawn").Pool(1) as pool:  # one for all, since it takes its time to start
        theirs = pool.map(read_some, datasets)

    for mine, worker in zip(before, theirs, strict=True):
        for values, same in zip(mine, worker, strict=True):
            np.testing.assert_array_equal(values, same)


def read_some(dataset: EpisodeDataset) -> list[np.ndarray]:
    episode = dataset.episode(1)
    return [episode.actions, episode.proprio, *(episode.images(camera, [3, 1]) for camera in dataset.cameras)]


def test_a_pickled_dataset_holds_no_numbers(path: Path) -> None:
    """Thousands of workers' starts must not each copy the data."""
    dataset = open_dataset(path)
    small = len(pickle.dumps(dataset))

    read_some(dataset)

    assert len(pickle.dumps(dataset)) < small + 1000


def test_chunks_are_made_of_any_format(path: Path) -> None:
    dataset = open_dataset(path)
    chunks = ChunkDataset(dataset, np.array([0, 1]), dataset.cameras, image_size=32, horizon=4)

    batch = chunks.__getitems__([(0, 1), (0, int(dataset.lengths[0]) + 1)])

    assert batch.images is not None and batch.images.shape == (2, 2, 3, 32, 32)
    np.testing.assert_array_equal(batch.actions[1], dataset.episode(1).actions[1:5])
    assert batch.instruction == [dataset.episode(0).instruction, dataset.episode(1).instruction]


def test_the_fingerprint_changes_with_the_data_and_how_it_is_read(path: Path) -> None:
    before = open_dataset(path).fingerprint()

    assert open_dataset(path).fingerprint() == before
    assert open_dataset(path, orientation="rotated_180").fingerprint() != before
    for file in path.rglob("*"):
        if file.suffix in (".hdf5", ".parquet", ".mp4"):
            os.utime(file, ns=(0, 0))
            changed = open_dataset(path).fingerprint()
            assert changed != before, file
            before = changed


def test_nothing_there_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dataset at .*nowhere.*LIBERO.*LeRobot.*hf:"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no episodes"):
        open_dataset(tmp_path / "empty")
