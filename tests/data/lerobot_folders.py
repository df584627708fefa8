"""LeRobot folders for tests: copies of those that LeRobot wrote, the same in its older layouts, and faults in them.

The fixtures were written by LeRobot 0.6.2; `<name>.expected.json` is what was put into them: numbers exactly, and for
each image the mean colour, that of its top left quarter, and, if it is stored without loss, the SHA-256 of its bytes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atlas.system.process_control.threads import no_real_time

FIXTURES = Path(__file__).parents[1] / "fixtures"
VIDEO, IMAGE = "lerobot_v30_video", "lerobot_v30_image"
DATA_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_V2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def expected(name: str) -> dict[str, Any]:
    """What was put into a fixture."""
    return json.loads((FIXTURES / f"{name}.expected.json").read_text())


def copy_fixture(name: str, target: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / name, target))


def edit_info(root: Path, **changes: Any) -> None:
    """Change keys of a dataset's info.json; None removes one."""
    path = root / "meta" / "info.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_feature(root: Path, key: str, **changes: Any) -> None:
    features = json.loads((root / "meta" / "info.json").read_text())["features"]
    edit_info(root, features=features | {key: features[key] | changes})


def rename_feature(root: Path, old: str, new: str) -> None:
    """Give a feature of a version 3 folder another name: in info.json, in its files, and as a folder of videos."""
    features = json.loads((root / "meta" / "info.json").read_text())["features"]
    edit_info(root, features={new if key == old else key: value for key, value in features.items()})
    for path in root.rglob("*.parquet"):
        table = pq.read_table(path)
        names = [new if n == old else n.replace(f"videos/{old}/", f"videos/{new}/") for n in table.column_names]
        pq.write_table(table.rename_columns(names), path)
    if (root / "videos" / old).exists():
        (root / "videos" / old).rename(root / "videos" / new)


def replace_column(path: Path, key: str, values: Any) -> None:
    """Write a column of a Parquet file again, of any type."""
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(key), key, pa.array(values)), path)


def as_version_2(source: Path, target: Path, version: str = "v2.1") -> Path:
    """A version 3 folder in the layout of 2.1 or 2.0: one file per episode, metadata in lines of JSON."""
    info = json.loads((source / "meta" / "info.json").read_text())
    episodes = pq.read_table(source / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    tasks = pq.read_table(source / "meta/tasks.parquet").to_pylist()
    rows = pq.read_table(source / "data/chunk-000/file-000.parquet")
    keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    (target / "meta").mkdir(parents=True)
    for episode in episodes:
        numbers = {"episode_chunk": 0, "episode_index": episode["episode_index"]}
        data = target / DATA_V2.format(**numbers)
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.slice(episode["dataset_from_index"], episode["length"]), data)
        for key in keys:
            span = [episode[f"videos/{key}/{part}_timestamp"] for part in ("from", "to")]
            cut_video(
                source / "videos" / key / "chunk-000/file-000.mp4",
                target / VIDEO_V2.format(video_key=key, **numbers),
                *span,
            )
    lines = {
        "episodes.jsonl": [{key: episode[key] for key in ("episode_index", "tasks", "length")} for episode in episodes],
        "tasks.jsonl": [{"task_index": task["task_index"], "task": task["task"]} for task in tasks],
    }
    for name, values in lines.items():
        (target / "meta" / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    (target / "meta" / "info.json").write_text(json.dumps(info))
    changes = {"codebase_version": version, "data_path": DATA_V2, "video_path": VIDEO_V2, "chunks_size": 1000}
    edit_info(target, **changes)
    return target


def cut_video(source: Path, target: Path, start: float, end: float) -> None:
    """Copy the frames from `start` to before `end`, in seconds, into a video of their own that begins at 0."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as whole, av.open(str(target), "w") as part:
        stream = whole.streams.video[0]
        out = part.add_stream_from_template(stream, opaque=True)  # not encoded again
        first = round(start / stream.time_base)
        for packet in whole.demux(stream):
            if packet.pts is not None and first <= packet.pts < round(end / stream.time_base):
                packet.pts -= first
                packet.dts -= first
                packet.stream = out
                part.mux(packet)


def write_video(
    path: Path, frames: np.ndarray, numbers: list[int] | None = None, codec: str = "libx264", **options: str
) -> Path:
    """Encode uint8 [n, H, W, 3] at 10 frames a second. numbers: each frame's place in time; None: one after another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with no_real_time(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = options
        for number, image in zip(numbers or range(len(frames)), frames, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def truncate(path: Path, keep: float = 0.5) -> None:
    """Cut a file off, as a download that was interrupted does."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
