"""LeRobot datasets whose videos are damaged, or not what the metadata says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from atlas.data.video import PyAVDecoder
from tests.bad_input.table import Row, cut, each, flip, refused
from tests.data.lerobot_folders import FIXTURES, VIDEO, copy_fixture

FILM = "videos/observation.images.image/chunk-000/file-000.mp4"
OTHER = "videos/observation.images.image2/chunk-000/file-000.mp4"
FRAMES, SIZE, FPS = 40, 64, 10


def film(name: str, change: Callable[[Path], Any], *words: str) -> Row:
    return Row(name, lambda root: change(root / FILM), (FILM, *words))


def encode(path: Path, frames: int = FRAMES, size: int = SIZE, fps: int = FPS, late: int = 0) -> None:
    """A grey film instead of the real one; late: frames that come after those asked for."""
    container_format = "mp4"
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 100, np.uint8), format="rgb24")
            frame.pts = number + late
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def another_container(path: Path) -> None:
    """The same film in Matroska, called .mp4."""
    copy = path.with_suffix(".old")
    path.rename(copy)
    with av.open(str(copy)) as whole, av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream_from_template(whole.streams.video[0], opaque=True)
        for packet in whole.demux(whole.streams.video[0]):
            if packet.pts is not None:
                packet.stream = stream
                out.mux(packet)
    copy.unlink()


def sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 48000
        for number in range(8):
            frame.pts = 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def picture(path: Path) -> None:
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(path, format="PNG")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_the_other_dataset(root: Path) -> None:
    """The shorter film of one episode instead of the film of all."""
    shutil.copyfile(root / OTHER, root / FILM)
    cut(root / FILM, 0.7)


ROWS = [
    film("no bytes", lambda path: path.write_bytes(b""), "is empty"),
    film("missing", lambda path: path.unlink(), "Copy"),
    film("a folder", folder, "observation.images.image"),
    film("text", lambda path: path.write_text("a film\n" * 500), "not an MP4 file"),
    film("a picture", picture, "not an MP4 file"),
    film("zeros", lambda path: path.write_bytes(bytes(path.stat().st_size)), "MP4"),
    film("another container", another_container, "not an MP4 file"),
    film("cut off in the header", lambda path: cut(path, 0.01), "truncated"),
    film("cut off in the middle", lambda path: cut(path, 0.5), "truncated"),
    film("cut off before the end", lambda path: cut(path, 0.99), "truncated"),
    film("a flipped first box", lambda path: flip(path, 4, 5, 6, 7), "not an MP4 file"),
    film("sound without pictures", sound_only),
    film("twice the frame rate", lambda path: encode(path, fps=2 * FPS), "no frame at", "frame rate"),
    film("half the frame rate", lambda path: encode(path, fps=FPS // 2), "no frame at", "frame rate"),
    film("too few frames", lambda path: encode(path, frames=FRAMES - 1), "no frame at"),
    film("one frame", lambda path: encode(path, frames=1), "no frame at"),
    film("frames that come later", lambda path: encode(path, fps=1000, late=31), "no frame at"),
    film("another size", lambda path: encode(path, size=SIZE // 2), "32 x 32", "64 x 64"),
    Row("another film, cut off", of_the_other_dataset, (FILM, "truncated")),
]


def test_the_good_film_has_the_frames_that_the_rows_take_it_to_have() -> None:
    images, times = PyAVDecoder(FIXTURES / VIDEO / FILM).read([i / FPS for i in range(FRAMES)])

    assert images.shape == (FRAMES, SIZE, SIZE, 3) and np.allclose(times, np.arange(FRAMES) / FPS)


@each(ROWS)
def test_a_bad_film_is_refused_before_training(bad: Row, place: Path, train_on: Callable[..., Sequence[str]]) -> None:
    data = copy_fixture(VIDEO, place / "set")
    bad.spoil(data)

    refused(place, train_on(data), *bad.words)
