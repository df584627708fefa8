"""Frames of video files by their exact time: with torchcodec if it loads, otherwise PyAV."""

from __future__ import annotations

import functools
import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from atlas.data.caches.lru import LRUCache
from atlas.data.origin import mend
from atlas.errors import InputError, first_line

logger = logging.getLogger(__name__)

TOLERANCE_S = 1e-4  # how far a frame's time may be from the one asked for, if the frame rate is unknown
FRAME_TOLERANCE = 0.2  # the same as a share of a frame's duration: times of joined videos drift, by 0.3 ms per episode
OPEN_DECODERS = 32  # per process


class _Decoder(Protocol):
    """An open video file."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its frames, from its header."""
        ...

    def read(self, times: Sequence[float], tolerance: float = TOLERANCE_S) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, H, W, 3] and float64 [n]: the frames nearest to ascending times in seconds, and their times.

        A frame no further than `tolerance` from a time is found."""
        ...

    def close(self) -> None: ...


class VideoReader:
    """Decodes only the frames that are asked for; each process keeps its most recently used decoders open.

    A forked process never touches the decoders it inherits, as it lacks their threads.
    """

    def __init__(self, bound: int = OPEN_DECODERS, open_decoder: Callable[[Path], _Decoder] | None = None) -> None:
        """bound: how many decoders stay open. open_decoder: the library to use; None: the one that is chosen."""
        self._bound, self._open = bound, open_decoder
        self._inherited: list[LRUCache[Path, _Decoder]] = []  # kept alive, since closing them may wait for threads
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"_bound": self._bound, "_open": self._open, "_inherited": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def frames(self, path: Path, times: Sequence[float] | np.ndarray, tolerance: float = TOLERANCE_S) -> np.ndarray:
        """uint8 [n, H, W, 3], RGB: the frames of a file at these times in seconds, in that order, in one pass.

        tolerance: seconds that a frame may be off; well under half of a frame's duration. Raises InputError if the file
        is missing or damaged, or has no frame that near.
        """
        wanted, place = np.unique(np.asarray(times, np.float64), return_inverse=True)
        with self._opening(path) as decoder:
            images, found = decoder.read(wanted.tolist(), tolerance)
        off = np.abs(found - wanted) - _rounding(wanted)
        if (off > tolerance).any():
            worst = int(off.argmax())
            here = int((off > tolerance).argmax()) if off[worst] > 2.5 * tolerance else worst
            raise InputError(_not_there(path, wanted[here], found[here], tolerance, off[worst] > 2.5 * tolerance))
        place = place.reshape(-1)
        return images if len(place) == len(images) and (np.diff(place) > 0).all() else images[place]

    def size(self, path: Path) -> tuple[int, int]:
        """Height and width of a file's frames, from its header. Raises InputError."""
        with self._opening(path) as decoder:
            return decoder.size

    @contextmanager
    def _opening(self, path: Path) -> Iterator[_Decoder]:
        """The decoder of a file, which several threads must not use at once."""
        if self._process != os.getpid():
            self._inherited.append(self._decoders)
            self._start()
        with self._lock:
            decoder = self._decoders.get(path, lambda: self._opened(path))
            try:
                yield decoder
            except InputError:
                self._decoders.drop(path)  # its position in the file is unknown now
                raise

    @property
    def open_files(self) -> list[Path]:
        """The files whose decoders are open in this process, the most recently used last."""
        return self._decoders.keys if self._process == os.getpid() else []

    def close(self) -> None:
        """Close this process's decoders; they open again when needed."""
        if self._process == os.getpid():
            with self._lock:
                self._decoders.clear()

    def _start(self) -> None:
        self._decoders: LRUCache[Path, _Decoder] = LRUCache(self._bound, lambda decoder: decoder.close())
        self._lock = threading.Lock()
        self._process = os.getpid()

    def _opened(self, path: Path) -> _Decoder:
        if not path.is_file():
            raise InputError(f"The video {path} is missing. {mend(path)}")
        return (self._open or chosen_decoder())(path)


@functools.cache
def video_reader() -> VideoReader:
    """The reader that all datasets of a process share."""
    return VideoReader()


@functools.cache
def chosen_decoder() -> Callable[[Path], _Decoder]:
    """The library that decodes; chosen once per process, and logged."""
    try:
        import torchcodec.decoders  # noqa: F401
    except Exception as error:  # it loads FFmpeg's libraries, and fails in as many ways as they can be missing
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({first_line(error)})"
        logger.info("Videos are decoded by PyAV; torchcodec %s.", why)
        return PyAVDecoder
    logger.info("Videos are decoded by torchcodec.")
    return TorchcodecDecoder


class TorchcodecDecoder:
    """A video file opened with torchcodec."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Approximate: a frame is found by its number and the rate, without first reading the whole file.
        self._exact = False
        self._decoder = self._opened("approximate")

    @property
    def size(self) -> tuple[int, int]:
        """See `_Decoder`."""
        return self._size

    def read(self, times: Sequence[float], tolerance: float = TOLERANCE_S) -> tuple[np.ndarray, np.ndarray]:
        """See `_Decoder`."""
        with _readable(self._path):
            if not self._exact:
                indices = [min(max(0, round(time * self._fps)), self._count - 1) for time in times]
                batch = self._decoder.get_frames_at(indices)
                found = batch.pts_seconds.numpy()
                if (np.abs(found - times) < 0.5 / self._fps).all():
                    return batch.data.numpy(), found
                logger.debug("%s: the frames are not evenly spaced; its index is read.", self._path)
                self._exact, self._decoder = True, self._opened("exact")
            first, end = self._decoder.metadata.begin_stream_seconds, self._decoder.metadata.end_stream_seconds
            # A frame is shown from its time on: a little later it is still that frame, whatever the rounding.
            shown = np.asarray(times) + tolerance + _rounding(np.asarray(times))
            shown = np.clip(shown, first, np.nextafter(end, first))
            batch = self._decoder.get_frames_played_at(shown.tolist())
            return batch.data.numpy(), batch.pts_seconds.numpy()

    def close(self) -> None:
        """Drop the decoder, which closes the file."""
        del self._decoder

    def _opened(self, seek_mode: str) -> Any:
        from torchcodec.decoders import VideoDecoder

        with _readable(self._path):
            decoder = VideoDecoder(
                str(self._path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode
            )  # the data workers already run in parallel
            self._fps, self._count = decoder.metadata.average_fps, decoder.metadata.num_frames
            if not self._fps or not self._count:
                raise InputError(
                    f"{self._path} does not state its frame rate and number of frames; it is not a usable video."
                )
            self._size = int(decoder.metadata.height), int(decoder.metadata.width)
            return decoder


class PyAVDecoder:
    """A video file opened with PyAV."""

    def __init__(self, path: Path) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self._path = path
        self._to_rgb = VideoReformatter()
        with _readable(path):
            self._container = av.open(str(path))
            if not self._container.streams.video:
                raise InputError(f"{path} holds no video.")
            self._stream: Any = self._container.streams.video[0]
            self._stream.codec_context.thread_count = 1  # the data workers already run in parallel
            # From the file's own index, without reading its frames.
            self._keys = sorted(entry.timestamp for entry in self._stream.index_entries if entry.is_keyframe)
            assert self._stream.time_base is not None  # FFmpeg gives every stream of a file one
            self._tick = float(self._stream.time_base)  # seconds
            self._size = int(self._stream.height), int(self._stream.width)
        self._frames: Iterator[Any] | None = None
        self._last: Any = None  # the frame decoded last

    @property
    def size(self) -> tuple[int, int]:
        """See `_Decoder`."""
        return self._size

    def read(self, times: Sequence[float], tolerance: float = TOLERANCE_S) -> tuple[np.ndarray, np.ndarray]:
        """See `_Decoder`."""
        with _readable(self._path):
            frames = [self._nearest(time) for time in times]
            # One thread: by default it starts one per core and open file.
            images = [self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray() for frame in frames]
            return np.stack(images), np.array([frame.pts * self._tick for frame in frames])

    def close(self) -> None:
        """Close the file."""
        self._frames = self._last = None
        self._container.close()

    def _nearest(self, time: float) -> Any:
        """The frame nearest to a time: decoded from the last keyframe before it, or from the current position."""
        target = round(time / self._tick)
        if self._last is None or target < self._last.pts or self._key_between(self._last.pts, target):
            self._seek(target)
        before = self._last
        while self._last is None or self._last.pts < target:
            frame = next(self._frames, None) if self._frames is not None else None
            if frame is None:
                break
            before, self._last = self._last, frame
        found = [frame for frame in (before, self._last) if frame is not None]
        if not found:
            raise InputError(f"{self._path} has no frame at {time:.4f} s.")
        return min(found, key=lambda frame: abs(frame.pts - target))

    def _seek(self, target: int) -> None:
        for start in (max(target, 0), 0):  # in some files, keyframes are shown later than their position says
            self._container.seek(start, stream=self._stream, backward=True)
            self._frames = self._container.decode(self._stream)
            self._last = next(self._frames, None)
            if self._last is not None and self._last.pts <= target:
                return

    def _key_between(self, position: int, target: int) -> bool:
        """Whether a keyframe lies beyond `position` but not beyond `target`: starting there is then shorter."""
        return not self._keys or bisect_right(self._keys, target) > bisect_right(self._keys, position)


def _not_there(path: Path, wanted: float, found: float, tolerance: float, missing: bool) -> str:
    """The message for a time without a frame: if one is near, it is shifted; otherwise it is missing."""
    text = (
        f"{path} has no frame at {wanted:.4f} s: the nearest is at {found:.4f} s, and at most {tolerance:g} s are "
        "allowed. "
    )
    if missing:
        return f"{text}Frames are missing, or its frame rate differs from the dataset's."
    return (
        f"{text}Its frames are shifted by {abs(found - wanted) * 1000:.1f} ms against what the dataset says, which may "
        "add up where episodes were joined: correct the times at which they begin, or join them again."
    )


def _rounding(times: np.ndarray) -> np.ndarray:
    """The error that times may have because datasets store them as float32, whose steps grow with the time."""
    return np.spacing(np.abs(times).astype(np.float32)).astype(np.float64)


class _readable:
    """Turns errors that a decoder raises for a damaged file into an InputError that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise InputError(
                f"{self._path} cannot be decoded ({first_line(error)}); it may be truncated. {mend(self._path)}"
            ) from error
