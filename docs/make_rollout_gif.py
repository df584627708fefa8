"""Makes docs/rollout.gif of films that `atlas eval --video DIR` wrote: python docs/make_rollout_gif.py FILM FILM"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

FPS = 20


def main(films: list[str]) -> None:
    decoded = []
    for film in films:
        with av.open(film) as container:
            decoded.append([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    length = max(len(frames) for frames in decoded)
    rows = [[frames[min(t, len(frames) - 1)] for frames in decoded] for t in range(length)]
    pictures = [
        Image.fromarray(np.concatenate(row, axis=1)).quantize(96, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        for row in rows
    ]
    out = Path(__file__).with_name("rollout.gif")
    pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0, optimize=True)
    print(f"{out}: {out.stat().st_size // 1024} KiB, {length} frames")


if __name__ == "__main__":
    main(sys.argv[1:])
