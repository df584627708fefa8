"""A few numbers about what a policy was shown in training, so that evaluation can be compared with it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.data.crop_geometry import fit_images
from atlas.data.episode import EpisodeDataset

THUMBNAIL = 16  # pixels per side
_FRAMES = 96
_STEP = 0.381966  # of an episode, between the frames looked at, so that all parts of episodes are seen
_INSTRUCTIONS = 1000


@dataclass(frozen=True)
class CameraSummary:
    """A camera's images as the network gets them. For each frame, the mean of each colour and the deviation of all
    pixels are computed; low and high are the smallest and largest of these four numbers. In levels of 255."""

    low: tuple[float, float, float, float]
    high: tuple[float, float, float, float]
    thumbnail: np.ndarray  # uint8 [THUMBNAIL, THUMBNAIL, 3], the mean of episodes' first images

    @classmethod
    def of(cls, images: np.ndarray, first: np.ndarray) -> CameraSummary:
        """images, first: uint8 [n, H, W, 3], from all parts of episodes, and from their starts."""
        numbers = frame_numbers(np.concatenate([images, first]))
        return cls(_four(numbers.min(0)), _four(numbers.max(0)), thumbnail_of(first))


@dataclass(frozen=True)
class TrainingInputs:
    """What the training episodes look like."""

    cameras: Mapping[str, CameraSummary]
    instructions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "instructions": list(self.instructions),
            "cameras": {
                name: {
                    "low": list(summary.low),
                    "high": list(summary.high),
                    "thumbnail": base64.b64encode(summary.thumbnail.tobytes()).decode(),
                }
                for name, summary in self.cameras.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingInputs:
        """Raises KeyError, TypeError or ValueError for any other form."""
        cameras = {}
        for name, summary in values["cameras"].items():
            pixels = np.frombuffer(base64.b64decode(summary["thumbnail"]), np.uint8)
            thumbnail = pixels.reshape(THUMBNAIL, THUMBNAIL, 3)
            cameras[name] = CameraSummary(_four(summary["low"]), _four(summary["high"]), thumbnail)
        return cls(cameras, tuple(values["instructions"]))


def summarise_inputs(
    dataset: EpisodeDataset, episodes: np.ndarray, cameras: Sequence[str], image_size: int
) -> TrainingInputs:
    """Looks at some frames of some episodes, the same ones each time."""
    chosen = episodes[np.unique(np.linspace(0, len(episodes) - 1, min(_FRAMES, len(episodes))).round().astype(int))]
    each = -(-_FRAMES // len(chosen))
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
    first: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
    for number, index in enumerate(chosen.tolist()):
        episode = dataset.episode(index)
        places = (np.arange(number * each, (number + 1) * each) * _STEP) % 1.0
        frames = [0, *sorted({int(place * len(episode)) for place in places})]
        for camera in cameras:
            fitted = fit_images(episode.images(camera, frames), image_size).permute(0, 2, 3, 1).numpy()
            first[camera].append(fitted[:1])
            images[camera].append(fitted[1:])
    tasks = [dataset.tasks[task] for task in np.unique(dataset.task_of[episodes]).tolist()]
    summaries = {
        camera: CameraSummary.of(np.concatenate(parts), np.concatenate(first[camera]))
        for camera, parts in images.items()
    }
    return TrainingInputs(summaries, tuple(tasks[:_INSTRUCTIONS]))


def frame_numbers(images: np.ndarray) -> np.ndarray:
    """float64 [n, 4] for uint8 [n, H, W, 3]: each frame's mean of each colour and deviation of all pixels."""
    values = images.astype(np.float64)
    return np.concatenate([values.mean(axis=(1, 2)), values.std(axis=(1, 2, 3))[:, None]], axis=1)


def thumbnail_of(images: np.ndarray) -> np.ndarray:
    """The mean of uint8 [n, H, W, 3], shrunk to uint8 [THUMBNAIL, THUMBNAIL, 3]."""
    mean = images.astype(np.float64).mean(0).round().astype(np.uint8)[None]
    return fit_images(mean, THUMBNAIL)[0].permute(1, 2, 0).numpy()


def _four(values: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
    a, b, c, d = (round(float(value), 2) for value in values)
    return a, b, c, d
