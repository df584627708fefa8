"""How fast batches come: python benchmarks/data.py

One dataset, as videos and as images, is read by Atlas, by LeRobot if it is installed, and by the bare decoder: the same
frames in a random order, decoded and thrown away by equally many processes. Each runs in a separate process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

EPISODES, FRAMES, SIZE = 100, 100, 256
CHUNK, BATCH, WORKERS = 16, 32, 2
WARM_UP = 40  # batches that are not counted (at most as many seconds as are measured): files are opened and examined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--size", type=int, default=SIZE, help="of the square images, in pixels")
    parser.add_argument("--codecs", nargs="+", default=["av1", "png"])
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured, in turn")
    parser.add_argument("--out", type=Path, help="a folder for the datasets; default: a temporary one")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "DATASET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, dataset = arguments.measure
        print(json.dumps(MEASURES[what](Path(dataset), arguments.seconds)))
        return
    from machine import describe

    print(describe())
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        for codec in arguments.codecs:
            dataset = write(out, codec, arguments.episodes, arguments.frames, arguments.size)
            report(codec, dataset, out / "cache", arguments)


def report(codec: str, dataset: Path, cache: Path, arguments: argparse.Namespace) -> None:
    """Measure everything in turn, and print a table.

    Samples per second are the median of the rounds. Ratios compare measurements from the same round, and are then the
    median: other work on the machine changes more between rounds than within one.
    """
    names = [name for name in MEASURES if "LeRobot" not in name or importlib.util.find_spec("lerobot")]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names:
            print(f"{codec}, round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
            size = read_all(dataset)
            rates[name].append(measure(name, dataset, cache, arguments.seconds))
    megabytes = size / 2**20
    shape = f"{arguments.episodes} x {arguments.frames} x 2 of {arguments.size} px, {megabytes:.0f} MiB"
    print(f"\n{codec}: {shape}; chunk {CHUNK}, batch {BATCH}, {WORKERS} workers")
    columns = [name for name in COMPARED if name in rates]
    print(f"{'':26} samples/s  {'  '.join(f'of {name}' for name in columns)}  rounds")
    for name, values in rates.items():
        ratios = [float(np.median(np.divide(values, rates[other]))) for other in columns]
        shown = "  ".join(f"{ratio:{len(other) + 3}.0%}" for ratio, other in zip(ratios, columns, strict=True))
        rounds = ", ".join(f"{value:.0f}" for value in values)
        print(f"{name:26} {float(np.median(values)):9.0f}  {shown}  {rounds}", flush=True)


def read_all(dataset: Path) -> int:
    """Read every file once, so that all readers find them in memory, whatever the disk does; returns their bytes."""
    return sum(len(path.read_bytes()) for path in dataset.rglob("*") if path.is_file())


def measure(what: str, dataset: Path, cache: Path, seconds: float) -> float:
    """Samples per second, in a separate process."""
    command = [sys.executable, __file__, "--measure", what, str(dataset), "--seconds", str(seconds)]
    environment = os.environ | {"ATLAS_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{what} of {dataset.name} failed:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def write(out: Path, codec: str, episodes: int, frames: int, size: int) -> Path:
    """The dataset, written unless it exists."""
    from made_up import MadeUp

    from atlas.data.convert import Conversion, convert

    folder = out / f"{codec}-{episodes}x{frames}x{size}"
    convert(MadeUp(episodes, frames, size), folder, Conversion("lerobot", codec))
    return folder


# ---- what is measured ------------------------------------------------------------------------------------


def rate(batches: Iterable[Any], seconds: float, size: Callable[[Any], int]) -> float:
    """Samples per second, after the warm-up. size: the number in a batch."""
    begin, start, samples = time.perf_counter(), None, 0
    for number, batch in enumerate(batches):
        now = time.perf_counter()
        if start is not None:
            samples += size(batch)
            if now - start >= seconds:
                return samples / (now - start)
        elif number == WARM_UP or now - begin >= seconds:
            start = now
    raise AssertionError("the batches do not end")


def endless(samples: int) -> Iterator[list[int]]:
    """Batches of all samples in a random order, again and again."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(samples)
        for first in range(0, samples - BATCH + 1, BATCH):
            yield order[first : first + BATCH].tolist()


def atlas(path: Path, seconds: float, frame_cache: Path | None = None) -> float:
    from atlas.data.formats import open_dataset
    from atlas.data.sampling.chunks import ChunkDataset
    from atlas.data.sampling.loader import make_loader

    dataset = open_dataset(path)
    cameras, size = dataset.cameras, dataset.image_size(dataset.cameras[0])[0]
    chunks = ChunkDataset(dataset, np.arange(len(dataset)), cameras, size, CHUNK)
    if frame_cache is not None:
        from atlas.data.caches.frame_cache import fill_caches, frame_caches

        fill_caches(frame_cache, dataset, cameras, size)
        chunks.use_frames(frame_caches(frame_cache, dataset, cameras, size))
    loader = make_loader(chunks, ([(0, i) for i in batch] for batch in endless(len(chunks))), WORKERS)
    return rate(loader, seconds, len)


def atlas_cached(path: Path, seconds: float) -> float:
    """Its frames decoded beforehand (data.frame_cache), which is not part of the time."""
    return atlas(path, seconds, path.with_name(f"{path.name}-frames"))


def lerobot(path: Path, seconds: float, chunk: int = CHUNK) -> float:
    """LeRobot's reader with torch's loader, as its training does it."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

    fps = LeRobotDatasetMetadata("made/up", root=path).fps
    later = {"action": [i / fps for i in range(chunk)]} if chunk > 1 else None
    dataset = LeRobotDataset("made/up", root=path, delta_timestamps=later)
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=endless(len(dataset)), num_workers=WORKERS, prefetch_factor=4
    )
    return rate(loader, seconds, lambda batch: len(batch["index"]))


def lerobot_without_chunk(path: Path, seconds: float) -> float:
    return lerobot(path, seconds, chunk=1)


def bare_decoder(path: Path, seconds: float) -> float:
    """As many processes as Atlas has workers, which only decode random frames of both cameras."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    processes = [context.Process(target=_decode, args=(path, seconds, seed, results)) for seed in range(WORKERS)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return float(sum(found))


def _decode(path: Path, seconds: float, seed: int, results: Any) -> None:
    decode = _video_frame(path) if (path / "videos").is_dir() else _png_frame(path)
    rng = np.random.default_rng(seed)
    frames = json.loads((path / "meta/info.json").read_text())["total_frames"]
    for _ in range(WARM_UP):
        decode(int(rng.integers(frames)))
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        decode(int(rng.integers(frames)))
        done += 1
    results.put(done / (time.perf_counter() - start))


def _video_frame(path: Path) -> Callable[[int], object]:
    """Decodes a frame of each camera, with the library that Atlas chooses, from files that stay open."""
    from atlas.data.video import chosen_decoder

    fps = json.loads((path / "meta/info.json").read_text())["fps"]
    cameras = [sorted(folder.rglob("*.mp4")) for folder in sorted((path / "videos").iterdir())]
    assert all(len(files) == 1 for files in cameras), "the benchmark's videos fit into one file a camera"
    decoders = [chosen_decoder()(files[0]) for files in cameras]
    return lambda frame: [decoder.read([frame / fps]) for decoder in decoders]


def _png_frame(path: Path) -> Callable[[int], object]:
    """Decodes an image of each camera, with Pillow, from a file held in memory."""
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    keys = [key for key in json.loads((path / "meta/info.json").read_text())["features"] if ".images." in key]
    files = [pq.read_table(file, columns=keys) for file in sorted(path.glob("data/*/*.parquet"))]
    images = [[value.as_py()["bytes"] for file in files for value in file.column(key)] for key in keys]
    return lambda frame: [np.asarray(Image.open(io.BytesIO(camera[frame]))) for camera in images]


MEASURES: dict[str, Callable[[Path, float], float]] = {
    "bare decoder": bare_decoder,
    "Atlas": atlas,
    "Atlas, data.frame_cache": atlas_cached,
    "LeRobot": lerobot,
    "LeRobot, without a chunk": lerobot_without_chunk,
}
COMPARED = ("bare decoder", "LeRobot", "LeRobot, without a chunk")


if __name__ == "__main__":
    main()
