"""Everything that is shown of an episode, whatever it is shown in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from atlas.data.episode import Episode, EpisodeDataset
from atlas.data.proprio import has_libero_proprio
from atlas.drawing.action_curves import Curve, action_curves, commanded_path, proprio_curves, readable
from atlas.errors import InputError
from atlas.types import ActionSpec
from atlas.viewer.prediction import Prediction, predict

_AT_ONCE = 64  # frames in memory


@dataclass(frozen=True)
class Story:
    """One episode of T frames."""

    dataset: str
    format: str
    fps: float  # that the dataset says it has
    number: int
    episodes: int
    episode: Episode
    spec: ActionSpec
    cameras: dict[str, tuple[int, int]]  # {name: height and width}
    actions: list[Curve]
    proprio: list[Curve]
    path: np.ndarray  # float64 [T, 3], metres: of the end effector where it is known, else where the actions lead
    path_is_measured: bool
    prediction: Prediction | None

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def hz(self) -> float:
        """Frames a second as it happened: a frame is a step of the robot, whatever fps its dataset is labelled with."""
        return self.spec.control_hz

    @property
    def closed(self) -> np.ndarray:
        """bool [T]: whether the gripper is told to close."""
        return self.actions[self.spec.gripper].values > 0.5

    def pictures(self, camera: str) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3], upright, frame after frame."""
        for first in range(0, len(self), _AT_ONCE):
            yield from self.episode.images(camera, range(first, min(first + _AT_ONCE, len(self))))


def tell(dataset: EpisodeDataset, number: int, checkpoint: str | None = None) -> Story:
    """Gather what there is to see. Raises InputError for an episode that is not there, as the dataset and `predict`."""
    if not 0 <= number < len(dataset):
        raise InputError(f"--episode is {number}, and {dataset.path} has the episodes 0 to {len(dataset) - 1}.")
    episode, spec = dataset.episode(number), dataset.action_spec
    prediction = predict(checkpoint, dataset, episode) if checkpoint is not None else None
    actions, proprio = np.array(episode.actions), np.array(episode.proprio)
    measured = has_libero_proprio(dataset)
    return Story(
        dataset=str(dataset.path),
        format=dataset.format,
        fps=dataset.fps,
        number=number,
        episodes=len(dataset),
        episode=episode,
        spec=spec,
        cameras={camera: dataset.image_size(camera) for camera in dataset.cameras},
        actions=action_curves(readable(actions, spec), prediction.chunks if prediction else None, spec),
        proprio=proprio_curves(proprio, dataset),
        path=proprio[:, :3].astype(np.float64) if measured else commanded_path(actions, spec),
        path_is_measured=measured,
        prediction=prediction,
    )
