"""How long it takes to open a dataset of many episodes, and how much memory: python benchmarks/data_opening.py

The dataset is synthetic and in LeRobot's layouts: metadata as LeRobot writes it, with its statistics per episode; of
data files and videos only the names exist, since opening reads none of them. With --damaged it has data files in place
of cameras, with one number in each that is not finite, and is opened with `skip_damaged`, which finds those episodes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CAMERAS = ("observation.images.image", "observation.images.image2")
FRAMES = 100  # per episode
EPISODES_A_FILE = 1000
STATISTICS = ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")
VECTORS = {"observation.state": 8, "action": 7}
SCALARS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="a folder for the datasets; default: a temporary one")
    parser.add_argument("--damaged", action="store_true", help="with data files, each with a damaged episode")
    arguments = parser.parse_args()
    sets: dict[str, Callable[[Path], None]] = {
        "v3.0, metadata in row groups of 1000 episodes": lambda root: write_v3(root, arguments.episodes, 1000),
        "v3.0, of 10, as LeRobot's recorder leaves it": lambda root: write_v3(root, arguments.episodes, 10),
        "v2.1": lambda root: write_v2(root, arguments.episodes),
    }
    if arguments.damaged:
        sets = {"v3.0, damaged": lambda root: write_damaged(root, arguments.episodes)}
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        for name, write in sets.items():
            root = out / name.replace(" ", "_").replace(",", "")
            if not (root / "meta" / "info.json").exists():
                write(root)
            for run in ("first time", "again"):
                print(f"{name}, {run}: {measure(root, out / 'cache', arguments.damaged)}", flush=True)


def measure(root: Path, cache: Path, skip_damaged: bool = False) -> str:
    """Open the dataset in a separate process."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from atlas.data.formats import open_dataset\n"
        "import logging; logging.disable()\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024\n"
        "before = peak()\n"
        "start, cpu = time.perf_counter(), time.process_time()\n"
        f"dataset = open_dataset(sys.argv[1], skip_damaged={skip_damaged})\n"
        "seconds, cpu = time.perf_counter() - start, time.process_time() - cpu\n"
        "print(len(dataset), f'episodes in {seconds:.2f} s ({cpu:.2f} s of processor time); '\n"
        "      f'{peak():.0f} MiB of memory at most, {before:.0f} of them by importing')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], check=True, capture_output=True, text=True, env=environment(cache)
    )
    return done.stdout.strip()


def environment(cache: Path) -> dict[str, str]:
    import os

    return os.environ | {"ATLAS_CACHE_DIR": str(cache)}


def write_info(root: Path, version: str, episodes: int, paths: dict[str, str]) -> None:
    features = {
        key: {"dtype": "video", "shape": [256, 256, 3], "names": ["height", "width", "channel"]} for key in CAMERAS
    }
    features |= {key: {"dtype": "float32", "shape": [width], "names": None} for key, width in VECTORS.items()}
    features |= {key: {"dtype": "int64", "shape": [1], "names": None} for key in SCALARS}
    info = {
        "codebase_version": version,
        "fps": 10,
        "features": features,
        "total_episodes": episodes,
        "total_frames": episodes * FRAMES,
        "total_tasks": 40,
        "chunks_size": 1000,
        **paths,
    }
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))


def touch(files: set[Path]) -> None:
    for folder in {file.parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        file.touch()


def write_v3(root: Path, episodes: int, row_group: int) -> None:
    number = np.arange(episodes)
    columns: dict[str, pa.Array] = {
        "episode_index": pa.array(number),
        "tasks": pa.array([[f"do the thing number {i % 40}"] for i in range(episodes)]),
        "length": pa.array(np.full(episodes, FRAMES)),
        "data/chunk_index": pa.array(np.zeros(episodes, np.int64)),
        "data/file_index": pa.array(number // EPISODES_A_FILE),
        "dataset_from_index": pa.array(number * FRAMES),
        "dataset_to_index": pa.array((number + 1) * FRAMES),
    }
    for key in CAMERAS:
        columns |= {
            f"videos/{key}/chunk_index": pa.array(np.zeros(episodes, np.int64)),
            f"videos/{key}/file_index": pa.array(number // EPISODES_A_FILE),
            f"videos/{key}/from_timestamp": pa.array((number % EPISODES_A_FILE) * FRAMES / 10),
            f"videos/{key}/to_timestamp": pa.array((number % EPISODES_A_FILE + 1) * FRAMES / 10),
        }
    rng = np.random.default_rng(0)
    for key, width in {**dict.fromkeys(CAMERAS, 3), **VECTORS, **dict.fromkeys(SCALARS, 1)}.items():
        for statistic in STATISTICS:
            values = pa.array(rng.random(episodes * width))
            columns[f"stats/{key}/{statistic}"] = pa.FixedSizeListArray.from_arrays(values, width).cast(
                pa.list_(pa.float64())
            )
    folder = root / "meta" / "episodes" / "chunk-000"
    folder.mkdir(parents=True, exist_ok=True)
    table, a_file = pa.table(columns), max(1, episodes // 5)
    for index, first in enumerate(range(0, episodes, a_file)):
        pq.write_table(table.slice(first, a_file), folder / f"file-{index:03d}.parquet", row_group_size=row_group)
    tasks = {"task_index": list(range(40)), "task": [f"do the thing number {i}" for i in range(40)]}
    pq.write_table(pa.table(tasks), root / "meta" / "tasks.parquet")
    names = [f"chunk-000/file-{i:03d}" for i in range(-(-episodes // EPISODES_A_FILE))]
    touch({root / "data" / f"{name}.parquet" for name in names})
    touch({root / "videos" / key / f"{name}.mp4" for name in names for key in CAMERAS})
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    write_info(root, "v3.0", episodes, {"data_path": data, "video_path": video})


def write_damaged(root: Path, episodes: int) -> None:
    """Version 3.0 without cameras, with the numbers of all frames; in each file one episode has one that is none."""
    write_v3(root, episodes, 1000)
    info = json.loads((root / "meta" / "info.json").read_text())
    features = {key: feature for key, feature in info["features"].items() if key not in CAMERAS}
    (root / "meta" / "info.json").write_text(json.dumps(info | {"features": features}))
    rng = np.random.default_rng(0)
    for first in range(0, episodes, EPISODES_A_FILE):
        episode = np.repeat(np.arange(first, min(episodes, first + EPISODES_A_FILE)), FRAMES)
        frame = np.tile(np.arange(FRAMES), len(episode) // FRAMES)
        values = {key: rng.uniform(-1, 1, (len(frame), width)).astype(np.float32) for key, width in VECTORS.items()}
        values["action"][:, 6] = np.sign(values["action"][:, 6])
        values["observation.state"][len(frame) // 3, 2] = np.nan
        columns = {key: pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), v.shape[1]) for key, v in values.items()}
        columns |= {"timestamp": pa.array((frame / 10).astype(np.float32)), "frame_index": pa.array(frame)}
        columns |= {"episode_index": pa.array(episode), "task_index": pa.array(episode % 40)}
        pq.write_table(pa.table(columns), root / f"data/chunk-000/file-{first // EPISODES_A_FILE:03d}.parquet")


def write_v2(root: Path, episodes: int) -> None:
    meta = root / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    with open(meta / "episodes.jsonl", "w", encoding="utf-8") as file:
        for i in range(episodes):
            line = {"episode_index": i, "tasks": [f"do the thing number {i % 40}"], "length": FRAMES}
            file.write(json.dumps(line) + "\n")
    with open(meta / "tasks.jsonl", "w", encoding="utf-8") as file:
        for i in range(40):
            file.write(json.dumps({"task_index": i, "task": f"do the thing number {i}"}) + "\n")
    touch({root / "data" / f"chunk-{i // 1000:03d}" / f"episode_{i:06d}.parquet" for i in range(episodes)})
    for key in CAMERAS:
        touch({root / "videos" / f"chunk-{i // 1000:03d}" / key / f"episode_{i:06d}.mp4" for i in range(episodes)})
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    write_info(root, "v2.1", episodes, {"data_path": data, "video_path": video})


if __name__ == "__main__":
    main()
