"""Videos as LeRobot writes them: each episode is encoded separately, and episodes are joined without encoding again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from atlas.errors import InputError
from atlas.system.process_control.threads import leave_real_time, no_real_time

_PIXELS = "yuv420p"
_EVERY = 2  # frames from one keyframe to the next, so that any frame is decoded quickly
_SMALLEST_AV1 = 64  # pixels per side, a limit of the encoder


@dataclass(frozen=True)
class Codec:
    """One of FFmpeg's encoders with its settings."""

    name: str  # as in info.json
    encoder: str
    crf: int
    preset: int | str
    options: tuple[tuple[str, str], ...] = ()

    def settings(self) -> dict[str, str]:
        return {"g": str(_EVERY), "crf": str(self.crf), "preset": str(self.preset), **dict(self.options)}


# LeRobot's own choice is av1 as here. The others' crf has another scale, on which 23 looks like av1's 30.
# One thread each: the episodes are encoded in parallel. No B-frames: frames are stored in the order of their times.
CODECS = {
    "av1": Codec("av1", "libsvtav1", 30, 12, (("svtav1-params", "lp=1"),)),
    "h264": Codec("h264", "libx264", 23, "medium", (("bf", "0"),)),
    "hevc": Codec("hevc", "libx265", 26, "medium", (("x265-params", "pools=1:bframes=0:log-level=error"),)),
}


def check_size(codec: str, camera: str, height: int, width: int) -> None:
    """Raises InputError if a codec cannot hold images of a size."""
    if codec == "av1" and min(height, width) < _SMALLEST_AV1:
        raise InputError(
            f"--codec av1 takes images of at least {_SMALLEST_AV1} pixels per side, but '{camera}' has {height} x "
            f"{width}; use --codec h264, or png."
        )
    if codec in CODECS and codec != "av1" and (height % 2 or width % 2):
        raise InputError(
            f"--codec {codec} takes images with even sides, but '{camera}' has {height} x {width}; use --codec av1, or "
            "png."
        )


def video_info(codec: str, height: int, width: int, fps: float) -> dict[str, Any]:
    """Return info.json's entry about a camera's videos."""
    chosen = CODECS[codec]
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": chosen.name,
        "video.pix_fmt": _PIXELS,
        "video.fps": whole(fps),
        "video.channels": 3,
        "has_audio": False,
        "video.g": _EVERY,
        "video.crf": chosen.crf,
        "video.preset": chosen.preset,
        "video.fast_decode": 0,
        "video.video_backend": "pyav",
        "video.extra_options": {},
        "is_depth_map": False,
    }


def whole(fps: float) -> int | float:
    """A rate as JSON writes it: 20, not 20.0."""
    return int(fps) if fps == int(fps) else fps


def frame_rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def encode(path: Path, frames: Iterable[np.ndarray], codec: str, fps: float) -> None:
    """Write an episode's frames, uint8 [n, H, W, 3] each, as a separate video. Raises InputError."""
    import av

    os.environ.setdefault("SVT_LOG", "1")  # errors only: the encoder prints two dozen lines per video
    chosen, stream = CODECS[codec], None
    try:
        with no_real_time(), av.open(str(path), "w", format="mp4") as container:
            for block in frames:
                if stream is None:
                    stream = container.add_stream(chosen.encoder, rate=frame_rate(fps), options=chosen.settings())
                    stream.height, stream.width = block.shape[1:3]
                    stream.pix_fmt, stream.thread_count = _PIXELS, 1
                for image in block:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                leave_real_time()
            assert stream is not None
            container.mux(stream.encode())
    except av.error.FFmpegError as error:
        raise InputError(f"{path.name} cannot be encoded as {codec} ({error}); use another --codec, or png.") from None


def dealt(parts: Sequence[Path], most_bytes: float) -> Iterator[list[int]]:
    """Deal out parts to files: consecutive ones up to `most_bytes`, and at least one."""
    here: list[int] = []
    size = 0
    for number, part in enumerate(parts):
        bytes_here = part.stat().st_size
        if here and size + bytes_here >= most_bytes:
            yield here
            here, size = [], 0
        here.append(number)
        size += bytes_here
    if here:
        yield here


def write_joined(path: Path, parts: Sequence[Path], lengths: Sequence[int], fps: float) -> None:
    """Join episodes of `lengths` frames into one file, with frame n at n / fps seconds."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    out, done = None, 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        for part, length in zip(parts, lengths, strict=True):
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                assert stream.time_base is not None
                if out is None:
                    out = container.add_stream_from_template(stream, opaque=True)
                    out.time_base = stream.time_base
                shift = done / frame_rate(fps) / stream.time_base
                assert shift.denominator == 1, "a frame begins between two ticks"
                frames = 0
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue
                    packet.pts += int(shift)
                    packet.dts += int(shift)
                    packet.stream = out
                    container.mux(packet)
                    frames += 1
            assert frames == length, f"{part} holds {frames} frames of {length}"
            done += length
