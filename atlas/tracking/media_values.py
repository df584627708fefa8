"""Pictures in motion: frames to mp4, mp4 to the animated GIF that TensorBoard shows, figures to pixels."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from atlas.system.files import atomic_path

_GIF_FPS = 10.0
_GIF_FRAMES = 100  # a GIF lies whole within the event file, so it is kept small
_GIF_SIDE = 384
_PALETTE_PICTURES = 8  # pictures of a film from which the colours of its GIF are chosen


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames uint8 [H, W, 3], at least one, as an H.264 mp4 that browsers play, atomically.

    An odd side gains a pixel. `frames` may be an array [T, H, W, 3] or an iterator that makes them one by one.
    """
    import av

    frames = iter(frames)
    first = next(frames)
    height, width, _ = first.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    with atomic_path(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        # As small as with the default preset for films of robots, in less than half the time.
        options = {"preset": "veryfast"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # otherwise x264 takes every core, and the run needs them
        for pixels in chain([first], frames):
            even = np.ascontiguousarray(np.pad(pixels, odd, mode="edge"))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())


def mp4_to_gif(path: Path) -> tuple[bytes, int, int]:
    """An mp4 as an animated GIF of at most 100 frames and 384 pixels per side: (its bytes, height, width)."""
    import av
    from PIL import Image

    pictures: list[Any] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or _GIF_FPS)
        every = max(1, round(fps / _GIF_FPS), -(-stream.frames // _GIF_FRAMES))
        for i, frame in enumerate(container.decode(stream)):
            if i % every == 0 and len(pictures) < _GIF_FRAMES:
                picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                picture.thumbnail((_GIF_SIDE, _GIF_SIDE))
                pictures.append(picture)
    if not pictures:
        raise ValueError(f"{path} holds no frames")
    encoded = io.BytesIO()
    duration = max(20, round(1000 * every / fps))  # milliseconds; browsers slow anything shorter than 20 down
    colours = _common_palette(pictures)
    # No dithering: still parts would flicker, and the file would be larger.
    first, *others = [picture.quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures]
    first.save(encoded, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
    return encoded.getvalue(), first.height, first.width


def _common_palette(pictures: list[Any]) -> Any:
    """An image with 256 colours that suit all pictures, chosen from some of them at half their size.

    One palette for the whole film takes a fifth of the time of one per picture, and still parts do not flicker.
    """
    from PIL import Image

    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, _PALETTE_PICTURES).astype(int)]
    strip = np.concatenate([np.asarray(picture)[::2, ::2] for picture in chosen], axis=1)
    return Image.fromarray(strip).quantize(256, method=Image.Quantize.FASTOCTREE)


def figure_pixels(figure: Any) -> np.ndarray:
    """A figure (anything with `savefig`, such as matplotlib's) or a PIL image as uint8 [H, W, 3]. Raises TypeError."""
    from PIL import Image

    if hasattr(figure, "savefig"):
        encoded = io.BytesIO()
        figure.savefig(encoded, format="png")
        encoded.seek(0)
        figure = Image.open(encoded)
    if not isinstance(figure, Image.Image):
        raise TypeError(f"a figure must have savefig or be a PIL image, not {type(figure).__name__}")
    return np.array(figure.convert("RGB"))
