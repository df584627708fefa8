"""Everything that is shown of an episode, in any format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from atlas.data.episode import Episode, EpisodeDataset, frame_instructions
from atlas.data.proprio import has_libero_proprio
from atlas.drawing.action_curves import Curve, action_curves, proprio_curves
from atlas.errors import InputError
from atlas.types import ActionSpec, Arm
from atlas.viewer.prediction import Prediction, predict

_AT_ONCE = 64  # frames in memory


@dataclass(frozen=True)
class EpisodeTimeline:
    """One episode of T frames."""

    dataset: str
    format: str
    fps: float  # the rate that the dataset states
    number: int
    episodes: int
    episode: Episode
    instructions: list[str]  # of each frame
    spec: ActionSpec
    cameras: dict[str, tuple[int, int]]  # {name: height and width}
    actions: list[Curve]
    proprio: list[Curve]
    # {arm: float64 [T, 3], metres}: the end effector's path if it is known, otherwise where the actions lead; may be {}
    paths: dict[Arm | None, np.ndarray]
    path_is_measured: bool
    prediction: Prediction | None

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def hz(self) -> float:
        """Frames per second in reality: a frame is a step of the robot, whatever fps its dataset is labelled with."""
        return self.spec.control_hz

    @property
    def changes(self) -> list[tuple[int, str]]:
        """The frames from which on an instruction is said, the first one's and those where it changes."""
        said = self.instructions
        return [(i, text) for i, text in enumerate(said) if i == 0 or text != said[i - 1]]

    @property
    def closed(self) -> dict[Arm | None, np.ndarray]:
        """{arm: bool [T]}: whether its gripper is told to close, for the arms that have one."""
        return {gripper.arm: self.actions[dimension].values > 0.5 for dimension, gripper in self.spec.grippers}

    def pictures(self, camera: str) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3], upright, frame after frame."""
        for first in range(0, len(self), _AT_ONCE):
            yield from self.episode.images(camera, range(first, min(first + _AT_ONCE, len(self))))


def make_timeline(dataset: EpisodeDataset, number: int, checkpoint: str | None = None) -> EpisodeTimeline:
    """Gather what there is to see. Raises InputError if there is no such episode, and as the dataset and `predict`."""
    if not 0 <= number < len(dataset):
        raise InputError(f"--episode is {number}, but {dataset.path} has the episodes 0 to {len(dataset) - 1}.")
    episode, spec = dataset.episode(number), dataset.action_spec
    prediction = predict(checkpoint, dataset, number) if checkpoint is not None else None
    actions, proprio = np.array(episode.actions), np.array(episode.proprio)
    measured = has_libero_proprio(dataset)
    return EpisodeTimeline(
        dataset=str(dataset.path),
        format=dataset.format,
        fps=dataset.fps,
        number=number,
        episodes=len(dataset),
        episode=episode,
        instructions=frame_instructions(dataset, number),
        spec=spec,
        cameras={camera: dataset.image_size(camera) for camera in dataset.cameras},
        actions=action_curves(spec.readable(actions), prediction.chunks if prediction else None, spec),
        proprio=proprio_curves(proprio, dataset),
        paths={_only_arm(spec): proprio[:, :3].astype(np.float64)} if measured else _commanded_paths(actions, spec),
        path_is_measured=measured,
        prediction=prediction,
    )


def _only_arm(spec: ActionSpec) -> Arm | None:
    return spec.arms[0] if spec.arms else None


def _commanded_paths(actions: np.ndarray, spec: ActionSpec) -> dict[Arm | None, np.ndarray]:
    """{arm: float64 [T, 3], m}: where each of the actions [T, A] leads; missing axes of a path are 0."""
    return {
        arm: np.pad(path[: len(actions)], [(0, 0), (0, 3 - path.shape[1])]) for arm, path in spec.paths(actions).items()
    }
