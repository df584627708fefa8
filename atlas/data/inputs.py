"""A few numbers about what a policy was shown in training, so that evaluation can be compared with it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.data.episode import EpisodeDataset, tasks_of
from atlas.data.image_fit import fit_images
from atlas.data.motion import MotionFit, fit_motion

THUMBNAIL = 16  # pixels per side
START = 48  # likewise, of the same picture in more detail
_FRAMES = 96
_STEP = 0.381966  # of an episode, between the frames looked at, so that all parts of episodes are seen
_INSTRUCTIONS = 1000
_EPISODES = 200  # whose numbers are looked at
_FEWEST_FRAMES = 24  # of which can be said where the hand is seen


@dataclass(frozen=True)
class CameraSummary:
    """A camera's images as the network gets them. For each frame, the mean of each colour and the deviation of all
    pixels are computed; low and high are the smallest and largest of these four numbers. In levels of 255."""

    low: tuple[float, float, float, float]
    high: tuple[float, float, float, float]
    thumbnail: np.ndarray  # uint8 [THUMBNAIL, THUMBNAIL, 3], the mean of episodes' first images
    # What older policies have not kept:
    start: np.ndarray | None = None  # uint8 [START, START, 3], the same mean in more detail
    detail: tuple[tuple[float, float], tuple[float, float]] | None = (
        None  # smallest and largest `detail_of` first images
    )

    follows: np.ndarray | None = None  # int8 [3, THUMBNAIL, THUMBNAIL], see `follow_map`; None: nothing moves

    @classmethod
    def of(cls, images: np.ndarray, first: np.ndarray, proprio: np.ndarray | None = None) -> CameraSummary:
        """images, first: uint8 [n, H, W, 3], from all parts of episodes, and from their starts; proprio: [n, P], of the
        former."""
        numbers = frame_numbers(np.concatenate([images, first]))
        fine = detail_of(first)
        detail = (_two(fine.min(0)), _two(fine.max(0)))
        start = thumbnail_of(first, START)
        follows = None if proprio is None else follow_map(images, proprio)
        return cls(_four(numbers.min(0)), _four(numbers.max(0)), thumbnail_of(first), start, detail, follows)


@dataclass(frozen=True)
class TrainingInputs:
    """A summary of what the training episodes look like."""

    cameras: Mapping[str, CameraSummary]
    instructions: tuple[str, ...]
    # What older policies have not kept:
    starts: tuple[tuple[float, ...], tuple[float, ...]] | None = (
        None  # smallest and largest proprio [P] of first frames
    )
    motion: MotionFit | None = None  # how the hand answers the actions; None where that cannot be told

    def to_dict(self) -> dict[str, Any]:
        return {
            "instructions": list(self.instructions),
            "cameras": {
                name: {
                    "low": list(summary.low),
                    "high": list(summary.high),
                    "thumbnail": _text(summary.thumbnail),
                    "start": None if summary.start is None else _text(summary.start),
                    "follows": None if summary.follows is None else _text(summary.follows),
                    "detail": None if summary.detail is None else [list(row) for row in summary.detail],
                }
                for name, summary in self.cameras.items()
            },
            "starts": None if self.starts is None else [list(row) for row in self.starts],
            "motion": None if self.motion is None else self.motion.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingInputs:
        """Raises KeyError, TypeError or ValueError for any other form."""
        cameras = {}
        for name, summary in values["cameras"].items():
            start, detail, follows = (summary.get(key) for key in ("start", "detail", "follows"))
            cameras[name] = CameraSummary(
                _four(summary["low"]),
                _four(summary["high"]),
                _pixels(summary["thumbnail"], THUMBNAIL),
                None if start is None else _pixels(start, START),
                None if detail is None else (_two(detail[0]), _two(detail[1])),
                None if follows is None else _bytes(follows, np.int8).reshape(3, THUMBNAIL, THUMBNAIL),
            )
        starts, motion = values.get("starts"), values.get("motion")
        return cls(
            cameras,
            tuple(values["instructions"]),
            None if starts is None else (tuple(map(float, starts[0])), tuple(map(float, starts[1]))),
            None if motion is None else MotionFit.from_dict(motion),
        )


def summarise_inputs(
    dataset: EpisodeDataset, episodes: np.ndarray, cameras: Sequence[str], image_size: int
) -> TrainingInputs:
    """Looks at some frames of some episodes, the same ones each time."""
    chosen = _evenly(episodes, _FRAMES)
    each = -(-_FRAMES // len(chosen))
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
    first: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
    places_of_hand: list[np.ndarray] = []
    for number, index in enumerate(chosen):
        episode = dataset.episode(index)
        places = (np.arange(number * each, (number + 1) * each) * _STEP) % 1.0
        frames = [0, *sorted({int(place * len(episode)) for place in places})]
        places_of_hand.append(episode.proprio[frames[1:]].astype(np.float64))
        for camera in cameras:
            fitted = fit_images(episode.images(camera, frames), image_size).permute(0, 2, 3, 1).numpy()
            first[camera].append(fitted[:1])
            images[camera].append(fitted[1:])
    tasks = [dataset.tasks[task] for task in sorted({task for i in episodes.tolist() for task in tasks_of(dataset, i)})]
    summaries = {
        camera: CameraSummary.of(np.concatenate(parts), np.concatenate(first[camera]), np.concatenate(places_of_hand))
        for camera, parts in images.items()
    }
    recorded = [_numbers(dataset, index) for index in _evenly(episodes, _EPISODES)]
    firsts = np.stack([proprio[0] for _, proprio in recorded])
    return TrainingInputs(
        summaries,
        tuple(tasks[:_INSTRUCTIONS]),
        (tuple(firsts.min(0).tolist()), tuple(firsts.max(0).tolist())),
        fit_motion(recorded, dataset.action_spec),
    )


def _evenly(episodes: np.ndarray, most: int) -> list[int]:
    places = np.linspace(0, len(episodes) - 1, min(most, len(episodes))).round().astype(int)
    return [int(index) for index in episodes[np.unique(places)]]


def _numbers(dataset: EpisodeDataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions [T, A] and proprio [T, P] of an episode, float64."""
    episode = dataset.episode(index)
    return episode.actions.astype(np.float64), episode.proprio.astype(np.float64)


def frame_numbers(images: np.ndarray) -> np.ndarray:
    """float64 [n, 4] for uint8 [n, H, W, 3]: each frame's mean of each colour and deviation of all pixels."""
    values = images.astype(np.float64)
    return np.concatenate([values.mean(axis=(1, 2)), values.std(axis=(1, 2, 3))[:, None]], axis=1)


def thumbnail_of(images: np.ndarray, size: int = THUMBNAIL) -> np.ndarray:
    """The mean of uint8 [n, H, W, 3], shrunk to uint8 [THUMBNAIL, THUMBNAIL, 3]."""
    mean = images.astype(np.float64).mean(0).round().astype(np.uint8)[None]
    return fit_images(mean, size)[0].permute(1, 2, 0).numpy()


def detail_of(images: np.ndarray) -> np.ndarray:
    """Measure the marks that resizing leaves in uint8 [n, H, W, 3]: float64 [n, 2].

    How much neighbouring pixels differ compared with those two apart (near a half: sharp; less: enlarged or blurred),
    and the share of rows and columns that repeat the one before, as in pictures enlarged without interpolation.
    """
    grey = images.astype(np.float64).mean(-1)
    near = [np.diff(grey, axis=axis) for axis in (1, 2)]
    far = [grey[:, 2:] - grey[:, :-2], grey[:, :, 2:] - grey[:, :, :-2]]
    ratio = _power(near) / np.maximum(_power(far), 1e-6)
    repeated = ((near[0] == 0).all(2).mean(1) + (near[1] == 0).all(1).mean(1)) / 2
    return np.stack([ratio, repeated], axis=1)


def _power(differences: Sequence[np.ndarray]) -> np.ndarray:
    """The mean squares of [n, H, W] along two axes, added: [n]."""
    return np.asarray(sum((each**2).mean((1, 2)) for each in differences))


def follow_map(images: np.ndarray, proprio: np.ndarray) -> np.ndarray | None:
    """Correlate the brightness of each place in uint8 [n, H, W, 3] with the first three numbers of proprio [n, P],
    which are the hand's position where there is a hand: correlations times 127, int8 [3, THUMBNAIL, THUMBNAIL].

    In a mirrored picture another place goes with the hand, however symmetrical the scene is. None for too few frames.
    """
    if len(images) < _FEWEST_FRAMES or proprio.shape[1] < 3:
        return None
    small = fit_images(images, THUMBNAIL).float().mean(1).numpy().astype(np.float64)  # [n, T, T]
    light, place = small - small.mean(0), proprio[:, :3] - proprio[:, :3].mean(0)
    product = np.einsum("nk,nyx->kyx", place, light) / len(images)
    deviations = place.std(0)[:, None, None] * light.std(0)[None]
    return np.round(127 * product / np.maximum(deviations, 1e-9)).clip(-127, 127).astype(np.int8)


def _text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _bytes(text: str, kind: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def _pixels(text: str, size: int) -> np.ndarray:
    return _bytes(text, np.uint8).reshape(size, size, 3)


def _four(values: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
    a, b, c, d = (round(float(value), 2) for value in values)
    return a, b, c, d


def _two(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    a, b = (round(float(value), 4) for value in values)
    return a, b
