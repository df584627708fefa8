"""Frames of videos, by time: always the right ones, whatever was read before."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from atlas.data import video
from atlas.data.video import PyAVDecoder, TorchcodecDecoder, VideoReader, chosen_decoder
from atlas.errors import InputError
from tests.data.lerobot_folders import FIXTURES, VIDEO, truncate, write_video

FILE = FIXTURES / VIDEO / "videos/observation.images.image/chunk-000/file-000.mp4"
COUNT, FPS = 40, 10


def torchcodec_loads() -> bool:
    return chosen_decoder() is TorchcodecDecoder


DECODERS = [
    PyAVDecoder,
    pytest.param(
        TorchcodecDecoder,
        marks=pytest.mark.skipif(not torchcodec_loads(), reason="torchcodec, or the FFmpeg it needs, is not installed"),
    ),
]


def all_frames(path: Path) -> np.ndarray:
    """Every frame in order, as FFmpeg gives them: uint8 [n, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def moving_picture(count: int = 60, size: int = 32) -> np.ndarray:
    """Frames that are all different: a light square on its way."""
    frames = np.full((count, size, size, 3), 40, np.uint8)
    for t in range(count):
        y, x = divmod(t * 3, size)
        frames[t, (y * 4) % size : (y * 4) % size + 4, x : x + 4] = (250, 20 + 3 * t, 250 - 3 * t)
    return frames


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_come_in_the_order_asked_for_and_may_repeat(decoder: type[PyAVDecoder]) -> None:
    frames = VideoReader(open_decoder=decoder).frames(FILE, [2.5, 0.0, 3.9, 2.5])

    np.testing.assert_array_equal(frames, all_frames(FILE)[[25, 0, 39, 25]])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),  # LeRobot's
        ("libx264", {"g": "12", "bf": "3"}),  # frames are stored in another order than shown
        ("libx264", {"g": "250"}),
        ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
        ("mpeg4", {"g": "7"}),
    ],
)
def test_what_was_read_before_makes_no_difference(
    decoder: type[PyAVDecoder], codec: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "film.mp4", moving_picture(), codec=codec, **options)
    expected, reader = all_frames(path), VideoReader(open_decoder=decoder)
    rng = np.random.default_rng(0)

    for numbers in [[0], [59], [58], [58], [3, 4, 5], *rng.integers(0, 60, (20, 3)).tolist()]:
        np.testing.assert_array_equal(reader.frames(path, np.array(numbers) / FPS), expected[numbers])


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_missing_frame_is_an_error_and_its_neighbours_are_found(decoder: type[PyAVDecoder], tmp_path: Path) -> None:
    numbers = [n for n in range(30) if n not in (12, 13)]
    path = write_video(tmp_path / "film.mp4", moving_picture(28), numbers)
    reader = VideoReader(open_decoder=decoder)

    np.testing.assert_array_equal(reader.frames(path, [1.1, 1.4, 2.9]), all_frames(path)[[11, 12, 27]])
    with pytest.raises(InputError, match=r"film\.mp4 has no frame at 1\.2000 s: the nearest is at 1\.[14]000 s"):
        reader.frames(path, [1.1, 1.2])


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_time_beside_the_frames_or_beyond_the_end_is_an_error(decoder: type[PyAVDecoder]) -> None:
    reader = VideoReader(open_decoder=decoder)

    np.testing.assert_array_equal(reader.frames(FILE, [1.00009]), all_frames(FILE)[[10]])
    with pytest.raises(InputError, match=r"no frame at 1\.0200 s: the nearest is at 1\.0000 s"):
        reader.frames(FILE, [1.02])
    with pytest.raises(InputError, match=r"no frame at 4\.0000 s: the nearest is at 3\.9000 s"):
        reader.frames(FILE, [4.0])
    assert len(reader.frames(FILE, [1.02], tolerance=0.03)) == 1


@pytest.mark.parametrize("decoder", DECODERS)
def test_late_times_that_were_rounded_to_float32_are_found(decoder: type[PyAVDecoder], tmp_path: Path) -> None:
    """A dataset keeps times as float32, whose steps after 2048 s are wider than the tolerance."""
    numbers = [0, *range(90000, 90012)]
    path = write_video(tmp_path / "long.mp4", moving_picture(13), numbers)
    rounded = np.float32([9000.1, 9000.7]).astype(np.float64)

    frames = VideoReader(open_decoder=decoder).frames(path, rounded)

    assert np.abs(rounded - [9000.1, 9000.7]).max() > video.TOLERANCE_S
    np.testing.assert_array_equal(frames, all_frames(path)[[2, 8]])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "sound"])
def test_a_file_that_is_no_whole_video_is_named(decoder: type[PyAVDecoder], damage: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", moving_picture(10))
    if damage == "truncated":
        truncate(path)
    elif damage == "sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        path.write_text("no video" * 100 if damage == "text" else "")

    with pytest.raises(InputError, match=r"film\.mp4 (cannot be decoded|holds no video)"):
        VideoReader(open_decoder=decoder).frames(path, [0.3])


def test_a_video_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.mp4 is missing"):
        VideoReader().frames(tmp_path / "nowhere.mp4", [0.0])


def recording(asked: list[list[float]]) -> Callable[[Path], PyAVDecoder]:
    """A decoder that notes what it is asked for."""

    class Recording(PyAVDecoder):
        def read(self, times: Sequence[float], tolerance: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
            asked.append(list(times))
            return super().read(times)

    return Recording


def test_several_frames_of_a_file_are_one_pass_over_it() -> None:
    asked: list[list[float]] = []

    VideoReader(open_decoder=recording(asked)).frames(FILE, [2.0, 0.5, 2.0, 1.5])

    assert asked == [[0.5, 1.5, 2.0]]


def test_the_last_used_decoders_stay_open_and_no_more(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{i}.mp4", moving_picture(5)) for i in range(3)]
    reader = VideoReader(bound=2)

    for path in (paths[0], paths[1], paths[0], paths[2]):
        reader.frames(path, [0.2])

    assert reader.open_files == [paths[0], paths[2]]
    reader.close()
    assert reader.open_files == []
    np.testing.assert_array_equal(reader.frames(paths[1], [0.2]), all_frames(paths[1])[[2]])


def test_a_file_that_could_not_be_decoded_is_opened_again(tmp_path: Path) -> None:
    """A decoder that stopped in the middle of something is not asked again."""
    path = write_video(tmp_path / "film.mp4", moving_picture(20))
    whole = path.read_bytes()
    reader = VideoReader(open_decoder=PyAVDecoder)
    damaged = bytearray(whole)
    first = whole.index(b"mdat") + 4
    damaged[first : first + 2000] = bytes(2000)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"film\.mp4"):
        reader.frames(path, [0.3])
    path.write_bytes(whole)

    np.testing.assert_array_equal(reader.frames(path, [0.3]), all_frames(path)[[3]])


def read_in_worker(reader: VideoReader) -> tuple[list[Path], np.ndarray, list[Path]]:
    """Which decoders the process starts with, a frame, and which are open then."""
    before = reader.open_files
    return before, reader.frames(FILE, [1.7]), reader.open_files


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_worker_opens_decoders_of_its_own(decoder: type[PyAVDecoder], start: str) -> None:
    reader = VideoReader(open_decoder=decoder)
    mine = reader.frames(FILE, [1.7])

    with multiprocessing.get_context(start).Pool(1) as pool:
        before, theirs, after = pool.apply(read_in_worker, (reader,))

    assert (before, after) == ([], [FILE])
    np.testing.assert_array_equal(theirs, mine)
    np.testing.assert_array_equal(reader.frames(FILE, [1.8]), all_frames(FILE)[[18]])


inherited_reader = VideoReader()


def test_a_forked_worker_leaves_inherited_decoders_alone() -> None:
    """As with a dataset that was read before the workers were forked: the reader is there with its open files."""
    inherited_reader.frames(FILE, [0.4])

    with multiprocessing.get_context("fork").Pool(1) as pool:
        before, theirs, after = pool.apply(read_inherited)

    assert (before, after) == ([], [FILE])
    np.testing.assert_array_equal(theirs, all_frames(FILE)[[17]])


def read_inherited() -> tuple[list[Path], np.ndarray, list[Path]]:
    return read_in_worker(inherited_reader)


def test_the_library_is_chosen_once_and_said(caplog: pytest.LogCaptureFixture) -> None:
    chosen_decoder.cache_clear()

    with caplog.at_level(logging.INFO, logger="atlas.data.video"):
        first, second = chosen_decoder(), chosen_decoder()

    assert first is second and first in (PyAVDecoder, TorchcodecDecoder)
    said = [r.message for r in caplog.records if r.name == "atlas.data.video"]
    name = {
        PyAVDecoder: "Videos are decoded by PyAV; torchcodec ",
        TorchcodecDecoder: "Videos are decoded by torchcodec.",
    }
    assert len(said) == 1 and said[0].startswith(name[first])
