"""Images in Parquet files: they are read back unchanged, from copies that are made once, by one process, and whole."""

from __future__ import annotations

import io
import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from atlas.checks.data_check import check_data
from atlas.checks.inspection import inspect_dataset
from atlas.config import DataConfig, load_config
from atlas.data.formats import open_configured, open_dataset
from atlas.data.lerobot import image_copies
from atlas.data.lerobot.image_copies import copy_images, open_copy, sizes_in
from atlas.data.lerobot.images import ParquetImages
from atlas.errors import InputError
from tests.data.lerobot_folders import (
    FIXTURES,
    IMAGE,
    VIDEO,
    VIDEO_V2,
    as_version_2,
    copy_fixture,
    replace_column,
    write_video,
)

DATA, KEY = "data/chunk-000/file-000.parquet", "observation.images.image"
SHOWN = FIXTURES / IMAGE / DATA


def png(height: int, width: int, value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, values: list[bytes | None], **settings: Any) -> Path:
    column = pa.array([{"bytes": value, "path": "x.png"} for value in values])
    pq.write_table(pa.table({"image": column}), path, **settings)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"compression": "none", "use_dictionary": False},
        {"compression": "snappy", "data_page_version": "2.0", "data_page_size": 9000},
        {"compression": "zstd", "dictionary_pagesize_limit": 20000},
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
)
def test_values_are_those_that_were_written(settings: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values: list[bytes | None] = [rng.bytes(int(rng.integers(1, 5000))) for _ in range(150)]
    values = [None if i % 7 == 3 else b"the same" if i % 5 == 0 else value for i, value in enumerate(values)]
    path = write(tmp_path / "x.parquet", values, row_group_size=40, **settings)

    assert open_copy(path, "image").images.to_pylist() == values


def test_sizes_are_known_with_and_without_a_copy(tmp_path: Path) -> None:
    images = [png(4, 6), None, png(8, 8), png(8, 8)[:20], b"GIF89a" + bytes(20)]
    path = write(tmp_path / "x.parquet", images)
    expected = [[4, 6], [0, 0], [8, 8], [0, 0], [0, 0]]

    assert sizes_in(path, "image").tolist() == expected
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    assert open_copy(path, "image").sizes.tolist() == expected == sizes_in(path, "image").tolist()


class Copy(NamedTuple):
    path: Path
    made: int


def copies(cache: Path) -> list[Copy]:
    return [Copy(path, path.stat().st_mtime_ns) for path in sorted(cache.rglob("*.arrow"))]


def _elsewhere(copy: Path, images: list[bytes]) -> None:
    """The first image reaches far beyond the file."""
    first, both = len(images[0]), len(images[0]) + len(images[1])
    content = copy.read_bytes()
    wrong = content.replace(struct.pack("<3q", 0, first, both), struct.pack("<3q", 0, 2**62, both))
    assert wrong != content
    copy.write_bytes(wrong)


def _sizeless(copy: Path, images: list[bytes]) -> None:
    schema = pa.schema({"image": pa.large_binary(), "height": pa.int32(), "width": pa.int32()})
    with pa.ipc.new_file(str(copy), schema) as writer:
        writer.write_batch(pa.record_batch([images, [None, 4], [4, 4]], schema=schema))


def _other_columns(copy: Path, images: list[bytes]) -> None:
    with pa.ipc.new_file(str(copy), schema := pa.schema({"image": pa.string(), "height": pa.int32()})) as writer:
        writer.write_batch(pa.record_batch([["a", "b"], [4, 4]], schema=schema))


@pytest.mark.parametrize("spoil", [_elsewhere, _sizeless, _other_columns])
def test_a_damaged_copy_is_made_again(
    spoil: Callable[[Path, list[bytes]], None], tmp_path: Path, own_cache: Path
) -> None:
    images = [png(4, 4, 1), png(4, 4, 200)]
    path = write(tmp_path / "x.parquet", list(images))
    open_copy(path, "image")
    spoil(copies(own_cache)[0].path, images)

    assert open_copy(path, "image").sizes.tolist() == [[4, 4], [4, 4]]
    assert [image.max() for image in ParquetImages().read(path, "image", [0, 1])] == [1, 200]


def test_a_copy_is_made_once_and_again_where_the_file_has_changed(tmp_path: Path, own_cache: Path) -> None:
    path = write(tmp_path / "x.parquet", [png(4, 4, 1)])
    old = open_copy(path, "image")
    made = copies(own_cache)
    assert ParquetImages().read(path, "image", [0])[0].max() == 1 and copies(own_cache) == made

    write(path, [png(4, 4, 200), png(4, 4, 3)])

    assert ParquetImages().read(path, "image", [0])[0].max() == 200
    assert len(copies(own_cache)) == 1 and copies(own_cache) != made  # what nobody will ask for is gone
    assert old.images[0].as_py() == png(4, 4, 1)  # who was reading it reads on
    assert not list(own_cache.rglob("*.partial"))


def test_of_several_that_need_a_copy_one_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = write(tmp_path / "x.parquet", [png(4, 4, 7)]), []
    plain = image_copies._write

    def slow(*arguments: Any) -> None:
        made.append(threading.get_ident())
        time.sleep(0.05)
        plain(*arguments)

    monkeypatch.setattr(image_copies, "_write", slow)
    found: list[int] = []
    each = [threading.Thread(target=lambda: found.append(len(open_copy(path, "image")))) for _ in range(4)]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()

    assert found == [1] * 4 and len(made) == 1


@pytest.mark.parametrize("left", [0, 100])
def test_a_copy_that_a_power_cut_left_is_made_again(left: int, tmp_path: Path, own_cache: Path) -> None:
    path = write(tmp_path / "x.parquet", [png(4, 4, 7)])
    open_copy(path, "image")
    (copy,) = copies(own_cache)
    os.truncate(copy.path, left)

    assert ParquetImages().read(path, "image", [0])[0].max() == 7


def test_what_copies_take_is_said_and_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    write(tmp_path / "x.parquet", [os.urandom(2**20) for _ in range(20)], use_dictionary=False)
    free = shutil.disk_usage(tmp_path)

    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: free._replace(free=10 * 2**20))
        with pytest.raises(InputError, match=r"20 MiB, are copied.* has 10 MiB free.*ATLAS_CACHE_DIR"):
            copy_images(tmp_path, ["x.parquet"], ["image"])
    assert not copies(own_cache)
    copy_images(tmp_path, ["x.parquet"], ["image"])
    said = capfd.readouterr().err
    assert "20 MiB in" in said and "Copying images of" in said and len(list(tmp_path.rglob("*.arrow"))) == 1
    copy_images(tmp_path, ["x.parquet"], ["image"])
    assert not capfd.readouterr().err


def test_an_image_that_claims_to_be_huge_is_not_decoded(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    root = copy_fixture(IMAGE, tmp_path / "set")
    images = pq.read_table(root / DATA).column(KEY).to_pylist()
    images[8]["bytes"] = bomb + bytes(100)
    replace_column(root / DATA, KEY, images)

    with pytest.raises(InputError, match=r"60000 x 60000|missing or damaged|in row 8 is damaged"):
        open_dataset(root).episode(1).images("agentview", [1])


# Images of several sizes


def other_sizes(tmp_path: Path, kind: str) -> tuple[Path, int]:
    """A dataset, and the middle episode, whose images have another size except the first and last one."""
    if kind == "videos":
        root = as_version_2(FIXTURES / VIDEO, tmp_path / "set")
        film = VIDEO_V2.format(episode_chunk=0, video_key=KEY, episode_index=1)
        write_video(root / film, np.zeros((14, 48, 48, 3), np.uint8))
        return root, 1
    root = copy_fixture(IMAGE, tmp_path / "set")
    images = pq.read_table(root / DATA).column(KEY).to_pylist()
    images[9]["bytes"] = png(48, 48)
    replace_column(root / DATA, KEY, images)
    return root, 1


@pytest.mark.parametrize("kind", ["videos", "images"])
def test_images_of_several_sizes_are_refused_by_all_alike(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, episode = other_sizes(tmp_path, kind)
    config = DataConfig(path=str(root))
    said = r"48 x 48 .* 64 x 64"

    with pytest.raises(InputError, match=said):
        open_dataset(root).episode(episode).images("agentview", [2])
    with pytest.raises(InputError, match=said):
        open_configured(config)
    with pytest.raises(InputError, match=said):
        inspect_dataset(open_dataset(root))
    found = check_data(load_config(None, [f"data.path={root}"]), env="none")
    assert [finding for finding in found if finding.severity == "error" and "48 x 48" in finding.message]
    dataset, _ = open_configured(config.model_copy(update={"skip_damaged": True}))
    assert len(dataset) == len(open_dataset(root)) - 1 and f"Left out: episode {episode} of" in caplog.text
