"""The actions that a trained policy would choose at each frame of a recorded episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas.data.episode import EpisodeDataset, frame_instructions
from atlas.data.sampling.history import recorded_observations
from atlas.errors import InputError
from atlas.launch import acting_device
from atlas.system.progress import progress_bar
from atlas.types import ActionSpec

_AT_ONCE = 32
# {error: its unit} for errors in physical units; and the text if the actions have none of them.
_ERRORS = {
    "position_error_mm": " mm",
    "rotation_error_deg": "°",
    "joint_error_deg": "° a joint",
    "joint_error_percent": "% a joint",
}
_PLAIN = {"pose_l1_error": " in the actions' units"}


@dataclass(frozen=True)
class Prediction:
    """The predicted chunks for all frames."""

    checkpoint: str
    chunks: np.ndarray  # float64 [T, H, A], as `ActionSpec.readable` gives them
    errors: dict[str, np.ndarray]  # `ActionSpec.errors` of the first actions, float64 [T] each

    @property
    def name(self) -> str:
        """The end of its path, such as a run's name and `checkpoints/best`."""
        return "/".join(self.checkpoint.rstrip("/").split("/")[-3:])

    def summary(self) -> str:
        """The mean errors, in one line."""
        said = [f"{self.errors[name].mean():.2f}{unit}" for name, unit in self._said.items()]
        line = f"off by {' and '.join(said)} on average"
        right = self.errors.get("gripper_accuracy")
        return line if right is None else f"{line}, gripper right at {right.mean():.0%}"

    @property
    def farthest(self) -> tuple[np.ndarray, str]:
        """The error of the first action at each frame, float64 [T], and its unit."""
        name, unit = next(iter(self._said.items()))
        return self.errors[name], unit.strip()

    @property
    def _said(self) -> dict[str, str]:
        """{error: its unit} for the errors in the summary."""
        return {name: unit for name, unit in _ERRORS.items() if name in self.errors} or _PLAIN


def predict(checkpoint: str, dataset: EpisodeDataset, number: int) -> Prediction:
    """Ask a policy at every frame of an episode, by its number. Raises InputError if it cannot be loaded or is for
    other data."""
    import torch

    from atlas.policies.base import load_policy

    episode, instructions = dataset.episode(number), frame_instructions(dataset, number)
    policy = load_policy(checkpoint)
    processor = policy.processor
    _check_fits(policy.processor.action_spec, processor.cameras, dataset, checkpoint)
    device = acting_device()
    policy.to(device)
    torch.manual_seed(0)  # a generative head draws its noise from torch's own generator
    source = processor.source_for(dataset.environment)
    chunks = []
    with progress_bar("asking the policy", len(episode)) as advance:
        for first in range(0, len(episode), _AT_ONCE):
            frames = range(first, min(first + _AT_ONCE, len(episode)))
            observations = recorded_observations(episode, frames, processor.cameras, processor.history, instructions)
            batch = processor.batch(observations, source).to(device)
            chunks.append(policy.sample(batch).float().cpu().numpy())
            advance(len(frames))
    return compare(checkpoint, np.concatenate(chunks), episode.actions, dataset.action_spec)


def compare(checkpoint: str, chunks: np.ndarray, actions: np.ndarray, spec: ActionSpec) -> Prediction:
    """Compare chunks float [T, H, A] with the recorded actions [T, A], both in the spec's units."""
    import torch

    errors = spec.errors(torch.from_numpy(chunks[:, 0]), torch.from_numpy(np.array(actions)))
    return Prediction(checkpoint, spec.readable(chunks), {name: error.numpy() for name, error in errors.items()})


def _check_fits(spec: ActionSpec, cameras: tuple[str, ...], dataset: EpisodeDataset, checkpoint: str) -> None:
    missing = [camera for camera in cameras if camera not in dataset.cameras]
    if missing:
        raise InputError(f"{checkpoint} was trained with the cameras {list(cameras)}; {dataset.path} lacks {missing}.")
    if spec.names != dataset.action_spec.names:
        raise InputError(
            f"{checkpoint} predicts {', '.join(spec.names)}; {dataset.path} has {', '.join(dataset.action_spec.names)}."
        )
