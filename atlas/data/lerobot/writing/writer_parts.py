"""One episode on its way into a LeRobot dataset: encoded separately, in a folder that is complete or absent."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from atlas.data.episode import Episode
from atlas.data.lerobot.writing import writer_statistics
from atlas.data.lerobot.writing.writer_videos import CODECS, encode
from atlas.system.files import partial_folder

_NUMBERS, _IMAGES = "numbers.npz", "images.parquet"
_AT_ONCE = 64  # frames in memory
_COMPRESSION = 3  # of PNG: a third of the default level's time, and hardly larger for grainy pictures
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Part:
    """The folder of one episode."""

    folder: Path

    @property
    def complete(self) -> bool:
        """Whether it is there with its bytes: a power cut may leave only names of files."""
        return zipfile.is_zipfile(self.folder / _NUMBERS) and all(file.stat().st_size for file in self.folder.iterdir())

    def video(self, camera: str) -> Path:
        return self.folder / f"{camera}.mp4"

    def images(self) -> pa.Table:
        """A column of PNG files for each camera."""
        return pq.read_table(self.folder / _IMAGES)

    def numbers(self) -> Numbers:
        with np.load(self.folder / _NUMBERS) as file:
            values = {name: file[name] for name in file.files}
        levels = {name.removeprefix("levels/"): values.pop(name) for name in list(values) if name.startswith("levels/")}
        success, xml = values.pop("success", None), values.pop("model_xml", None)
        return Numbers(
            levels=levels,
            success=None if success is None else bool(success),
            model_xml=None if xml is None else str(xml),
            **values,
        )


@dataclass(frozen=True)
class Numbers:
    """An episode's data other than images; None if its source has none."""

    actions: np.ndarray  # float32 [T, A]
    proprio: np.ndarray  # float32 [T, P]
    levels: dict[str, np.ndarray]  # {camera: int64 [3, 256]}, from which its images' statistics follow
    rewards: np.ndarray | None = None  # float32 [T]
    success: bool | None = None
    sim_states: np.ndarray | None = None  # float64 [T, D]
    init_state: np.ndarray | None = None  # float64 [D]
    model_xml: str | None = None


def write_part(part: Part, episode: Episode, cameras: list[str], codec: str, fps: float) -> None:
    """Read an episode once, and write its part. Raises InputError as the source and the encoder do."""
    with partial_folder(part.folder) as partial:
        levels = {camera: np.zeros((3, 256), np.int64) for camera in cameras}
        files: dict[str, list[dict[str, object]]] = {}
        for camera in cameras:
            blocks = _counted(episode, camera, levels[camera])
            if codec in CODECS:
                encode(Part(partial).video(camera), blocks, codec, fps)
            else:
                images = (image for block in blocks for image in block)
                files[camera] = [{"bytes": _png(image), "path": f"frame-{i:06d}.png"} for i, image in enumerate(images)]
        if files:
            table = pa.table({camera: pa.array(values, IMAGE) for camera, values in files.items()})
            pq.write_table(table, partial / _IMAGES, compression="none", use_dictionary=False)
        _write_numbers(partial / _NUMBERS, episode, levels)
        shutil.rmtree(part.folder, ignore_errors=True)  # an incomplete part
        partial.rename(part.folder)


def _counted(episode: Episode, camera: str, levels: np.ndarray) -> Iterator[np.ndarray]:
    """The episode's images, some at a time; adds to `levels`."""
    for first in range(0, len(episode), _AT_ONCE):
        images = episode.images(camera, range(first, min(first + _AT_ONCE, len(episode))))
        levels += writer_statistics.count_levels(images)
        yield images


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()


def _write_numbers(path: Path, episode: Episode, levels: dict[str, np.ndarray]) -> None:
    optional = {
        "rewards": episode.rewards,
        "success": episode.success,
        "sim_states": episode.sim_states,
        "init_state": episode.init_state,
        "model_xml": episode.model_xml,
    }
    values = {name: value for name, value in optional.items() if value is not None}
    values |= {f"levels/{camera}": counts for camera, counts in levels.items()}
    with open(path, "wb") as file:
        np.savez(file, actions=episode.actions, proprio=episode.proprio, **values)  # type: ignore[arg-type]
