"""`data.skip_damaged`: what is damaged is named and left out, and the rest is unchanged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atlas.config import DataConfig
from atlas.data.formats import open_configured
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.video import video_reader
from atlas.errors import InputError
from tests.conftest import MakeLibero
from tests.data.lerobot_folders import (
    FIXTURES,
    IMAGE,
    VIDEO,
    VIDEO_V2,
    as_version_2,
    copy_fixture,
    truncate,
    write_video,
)

Spoil = Callable[[Path], object]
FILM = VIDEO_V2.format(episode_chunk=0, video_key="observation.images.image", episode_index=1)
DATA = "data/chunk-000/episode_000002.parquet"


def film_of(frames: int, size: int = 64) -> Spoil:
    return lambda root: write_video(root / FILM, np.zeros((frames, size, size, 3), np.uint8))


def not_finite(path: Path, row: int) -> None:
    table = pq.read_table(path)
    values = np.stack(table.column("action").to_pylist())
    values[row, 2] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), values.shape[1])
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", column), path)


# What is spoilt in a version 2.1 folder, the episode it is of, and what the warning holds.
FAULTS: dict[str, tuple[Spoil, int, list[str]]] = {
    "a truncated video": (lambda root: truncate(root / FILM), 1, [FILM, "truncated"]),
    "a missing video": (lambda root: (root / FILM).unlink(), 1, [FILM, "cannot be read"]),
    "a video with too few frames": (film_of(3), 1, [FILM, "no frame at"]),
    "a video of another size": (film_of(40, size=32), 1, [FILM, "32 x 32"]),
    "a truncated data file": (lambda root: truncate(root / DATA), 2, [DATA, "truncated"]),
    "a missing data file": (lambda root: (root / DATA).unlink(), 2, [DATA]),
    "a number that is not finite": (lambda root: not_finite(root / DATA, 3), 2, [DATA, "not finite"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_damaged_is_named_and_the_rest_is_read(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, episode, words = FAULTS[fault]
    root = as_version_2(FIXTURES / VIDEO, tmp_path / "set")
    sound, cameras = open_configured(DataConfig(path=str(root)))
    expected = [
        (e.instruction, np.array(e.actions), e.images(cameras[1], [2]))
        for e in (sound.episode(i) for i in range(4) if i != episode)
    ]
    video_reader().close()  # else it reads on in files that it has open
    spoil(root)

    with pytest.raises(InputError):  # without it: the first one is named
        open_configured(DataConfig(path=str(root)))[0].episode(0).actions  # noqa: B018
    dataset, _ = open_configured(DataConfig(path=str(root), skip_damaged=True))

    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message for message in warned if message.startswith(f"Left out: episode {episode} of")]
    assert all(word in " ".join(warned) for word in words), warned
    assert len(dataset) == 3
    for number, (instruction, actions, images) in enumerate(expected):
        mine = dataset.episode(number)
        assert mine.instruction == instruction
        np.testing.assert_array_equal(mine.actions, actions)
        np.testing.assert_array_equal(mine.images(cameras[1], [2]), images)
    chunks = ChunkDataset(dataset, np.arange(3), cameras, image_size=32, horizon=4)
    assert len(chunks) == dataset.lengths.sum() and chunks[0, len(chunks) - 1].images is not None


@pytest.mark.parametrize("name", [VIDEO, IMAGE])
def test_one_episode_of_a_shared_file_is_left_out(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = copy_fixture(name, tmp_path / "set")
    sound, _ = open_configured(DataConfig(path=str(root)))
    others = [i for i in range(len(sound)) if i != 1]
    expected = [(np.array(sound.episode(i).actions), sound.episode(i).images("agentview", [4])) for i in others]
    not_finite(root / "data/chunk-000/file-000.parquet", int(sound.lengths[0]) + 1)

    dataset, _ = open_configured(DataConfig(path=str(root), skip_damaged=True))

    assert len(dataset) == len(others) and "Left out: episode 1 of" in caplog.text
    for number, (actions, images) in enumerate(expected):
        np.testing.assert_array_equal(dataset.episode(number).actions, actions)
        np.testing.assert_array_equal(dataset.episode(number).images("agentview", [4]), images)


def test_a_set_without_faults_is_the_same_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, careful = (open_configured(DataConfig(path=str(FIXTURES / VIDEO), skip_damaged=s))[0] for s in (False, True))

    assert plain.fingerprint() == careful.fingerprint() and "Left out" not in caplog.text


def test_damaged_hdf5_files_and_demos_are_left_out(make_libero: MakeLibero, caplog: pytest.LogCaptureFixture) -> None:
    root = make_libero({"open it": [8, 9], "close it": [7, 10, 6], "lift it": [5, 5]})
    truncate(root / "task_0_demo.hdf5")
    with h5py.File(root / "task_1_demo.hdf5", "a") as file:
        file["data/demo_1/actions"][3, 2] = np.nan

    with pytest.raises(InputError, match="task_0_demo"):
        open_configured(DataConfig(path=str(root)))
    dataset, _ = open_configured(DataConfig(path=str(root), skip_damaged=True))

    assert dataset.lengths.tolist() == [7, 6, 5, 5] and dataset.tasks == ["close it", "lift it"]
    assert "task_0_demo.hdf5" in caplog.text and "data/demo_1/actions holds values that are not finite" in caplog.text


def test_a_set_without_a_sound_episode_is_refused(make_libero: MakeLibero, tmp_path: Path) -> None:
    libero, lerobot = make_libero(), as_version_2(FIXTURES / IMAGE, tmp_path / "set")
    for file in (*libero.glob("*.hdf5"), *lerobot.rglob("episode*.parquet")):
        truncate(file)

    for path in (libero, lerobot):
        with pytest.raises(InputError, match="no episode that is not damaged"):
            open_configured(DataConfig(path=str(path), skip_damaged=True))
