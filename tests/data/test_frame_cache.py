"""Frames decoded once: the same bits as from the source, complete or absent, and made again for other data."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import atlas
from atlas.config import Config, load_config
from atlas.data.caches import frame_cache
from atlas.data.caches.frame_cache import FrameCache, fill_caches, frame_caches
from atlas.data.formats import open_configured
from atlas.data.training_data import open_training_data, read_cached_frames, split_data
from atlas.errors import InputError
from atlas.system.locks import hold
from atlas.system.process_control import pool
from tests.bad_input.table import SMALL
from tests.conftest import MakeLibero
from tests.data.lerobot_folders import FIXTURES, IMAGE, VIDEO

Sources = Callable[..., dict[str, Any]]


@pytest.fixture(params=["libero", "videos", "images", "mixture"])
def data(request: pytest.FixtureRequest, make_libero: MakeLibero) -> dict[str, Any]:
    """What of the config's data says what is read, at another size than it is stored in."""
    libero, videos = str(make_libero()), str(FIXTURES / VIDEO)
    return {
        "libero": {"path": libero},
        "videos": {"path": videos},
        "images": {"path": str(FIXTURES / IMAGE), "cameras": ["eye_in_hand"]},
        "mixture": {"datasets": [{"path": libero, "drop_noops": True}, {"path": videos, "orientation": "upright"}]},
    }[request.param]


def config_of(data: dict[str, Any], *overrides: str, size: int = 24) -> Config:
    return load_config({"data": {"image_size": size, "action_horizon": 4, **data}}, overrides)


def fill(config: Config, root: Path) -> None:
    data = split_data(config, *open_configured(config.data))
    fill_caches(root, data.dataset, data.cameras, data.train.pixels_to_cache)


@pytest.mark.usefixtures("ten_frames_a_file")  # which begin in the middle of episodes
def test_samples_are_those_of_the_source_to_the_bit(data: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(data)
    fill(config, tmp_path / "frames")
    plain = open_training_data(config)

    cached = open_training_data(config_of(data, f"data.frame_cache={tmp_path / 'frames'}"))

    for mine, theirs in ((cached.train, plain.train), (cached.val, plain.val)):
        samples = [(0, i) for i in range(len(theirs))]
        expected = theirs.__getitems__(samples)
        with mock.patch("atlas.data.sampling.chunks.ViewForm.__call__", side_effect=AssertionError("decoded")):
            batch = mine.__getitems__(samples)
        for name in ("images", "actions", "proprio", "source", "key"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name


@pytest.fixture
def libero(make_libero: MakeLibero) -> dict[str, Any]:
    return {"path": str(make_libero())}


@pytest.fixture
def ten_frames_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_cache, "_SHARD_BYTES", 10 * 2 * 3 * 24**2)


def cache_of(config: Config, root: Path) -> FrameCache:
    dataset, cameras = open_configured(config.data)
    (cache,) = frame_caches(root, dataset, cameras, config.data.image_size)
    return cache


def all_frames(cache: FrameCache) -> np.ndarray:
    return np.stack([cache.frame(number) for number in range(52)])


def test_whole_pictures_are_those_of_the_source_and_have_one_size(libero: dict[str, Any], tmp_path: Path) -> None:
    """For a policy that resizes them itself."""
    policy = {"model": {"type": "smolvla", "pretrained": str(FIXTURES / "smolvla")}}
    config = load_config({"data": {"action_horizon": 4, **libero}, **policy})
    fill(config, tmp_path / "frames")
    plain, cached = open_training_data(config), open_training_data(config)

    read_cached_frames(load_config(config, [f"data.frame_cache={tmp_path / 'frames'}"]), cached)

    mine, theirs = (data.train.__getitems__([(0, 3), (0, 9)]).images for data in (cached, plain))
    assert mine is not None and theirs is not None
    assert mine.shape == (2, 2, 3, 32, 32) and mine.dtype == torch.uint8 and torch.equal(mine, theirs)
    sources = [libero, {"path": str(FIXTURES / VIDEO), "orientation": "upright"}]  # of 32 and of 64 pixels
    several = open_training_data(load_config({"data": {"datasets": sources}, **policy}))
    with pytest.raises(InputError, match="these cameras have several sizes"):
        _ = several.train.pixels_to_cache


@pytest.mark.usefixtures("ten_frames_a_file")
def test_a_cache_goes_on_where_it_was_stopped(libero: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(libero)
    fill(config, tmp_path)
    cache = cache_of(config, tmp_path)
    whole, kept = all_frames(cache), cache.path(1).stat().st_mtime_ns
    cache.path(2).rename(cache.path(2).with_name(".frames_00002.npy.1.partial"))  # killed while it was written

    cache.path(4).write_bytes(b"")  # a power cut has left its name

    with pytest.raises(InputError, match=r"frame_cache.*lacks 2 of 6 files of 'demos'"):
        cache_of(config, tmp_path).check()
    fill(config, tmp_path)

    again = cache_of(config, tmp_path)
    again.check()
    assert not (again.folder / ".lock").exists() and again.path(1).stat().st_mtime_ns == kept
    np.testing.assert_array_equal(all_frames(again), whole)


@pytest.mark.usefixtures("ten_frames_a_file")
def test_frames_are_decoded_in_parallel_where_there_are_many(
    libero: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(libero)
    fill(config, tmp_path / "alone")
    monkeypatch.setattr(frame_cache, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(pool, "available_cores", lambda: 2)

    fill(config, tmp_path / "together")

    alone, together = (all_frames(cache_of(config, tmp_path / name)) for name in ("alone", "together"))
    np.testing.assert_array_equal(together, alone)


def test_what_else_the_frames_are_of_has_a_folder_of_its_own(libero: dict[str, Any], tmp_path: Path) -> None:
    before = cache_of(config_of(libero), tmp_path).folder

    assert cache_of(config_of(libero), tmp_path).folder == before
    for change in ({"orientation": "mirrored"}, {"cameras": ["agentview"]}, {"cameras": ["eye_in_hand", "agentview"]}):
        assert cache_of(config_of(libero | change), tmp_path).folder != before, change
    assert cache_of(config_of(libero, size=32), tmp_path).folder != before
    os.utime(next(Path(libero["path"]).iterdir()), ns=(0, 0))
    assert cache_of(config_of(libero), tmp_path).folder != before


def test_the_disk_it_takes_is_said_and_seen_to_first(
    libero: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2**16)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(InputError, match=r"data\.frame_cache: the frames take 0\.2 MiB, but .* has 0\.1 MiB free"):
        fill(config_of(libero), tmp_path / "frames")
    assert not (tmp_path / "frames").exists()

    monkeypatch.undo()
    fill(config_of(libero), tmp_path / "frames")
    assert "the decoded frames of 'demos' take 0.2 MiB in" in capsys.readouterr().err
    fill(config_of(libero), tmp_path / "frames")
    assert not capsys.readouterr().err
    file = next((tmp_path / "frames").glob("*/*.npy"))
    assert abs(file.stat().st_size - 52 * 2 * 3 * 24**2) < 200  # and a header


@pytest.mark.parametrize("damage", ["cut off", "text", "another shape"])
def test_a_damaged_file_is_named(libero: dict[str, Any], tmp_path: Path, damage: str) -> None:
    config = config_of(libero, f"data.frame_cache={tmp_path / 'frames'}")
    fill(config, tmp_path / "frames")
    file = next((tmp_path / "frames").glob("*/*.npy"))
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "text":
        file.write_text("frames")
    else:
        np.save(file, np.zeros((3, 2), np.uint8))

    with pytest.raises(InputError, match=r"frames_00000\.npy.*delete it"):
        open_training_data(config)


def test_a_training_fills_the_cache_and_reads_from_it(libero: dict[str, Any], tmp_path: Path) -> None:
    settings = [*SMALL, "data.image_size=24", f"data.path={libero['path']}", f"output_dir={tmp_path}"]

    plain = atlas.train(None, [*settings, "run_name=plain"])
    cached = atlas.train(None, [*settings, "run_name=cached", f"data.frame_cache={tmp_path / 'frames'}"])

    assert cached.metrics["val/loss"] == plain.metrics["val/loss"]
    assert len(list((tmp_path / "frames").glob("*/frames_*.npy"))) == 1


def test_a_frame_that_cannot_be_read_ends_it_and_leaves_no_half_file(libero: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(libero)
    dataset, cameras = open_configured(config.data)
    (cache,) = frame_caches(tmp_path / "frames", dataset, cameras, 24)

    with (
        mock.patch.object(frame_cache, "fit_images", side_effect=InputError("a.mp4 cannot be decoded")),
        pytest.raises(InputError, match=r"a\.mp4"),
    ):
        fill(config, tmp_path / "frames")

    assert not list(cache.folder.glob("*.npy*")) and not list(cache.folder.glob(".*"))


def test_what_another_process_decodes_is_waited_for(
    libero: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(libero)
    data = split_data(config, *open_configured(config.data))
    root, size = tmp_path / "frames", data.train.pixels_to_cache
    (cache,) = frame_caches(root, data.dataset, data.cameras, size)
    with ThreadPoolExecutor(1) as pool:
        with hold(cache.folder, "the other's"):
            filling = pool.submit(fill_caches, root, data.dataset, data.cameras, size)
            deadline = time.monotonic() + 30
            while "Waiting for process" not in capsys.readouterr().err and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not filling.done() and cache.missing
        filling.result(60)
    assert not cache.missing
