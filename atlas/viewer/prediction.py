"""What a trained policy would do at each frame of a recorded episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas.data.episode import Episode, EpisodeDataset
from atlas.drawing.action_curves import readable
from atlas.errors import InputError
from atlas.system.progress import progress_bar
from atlas.types import ActionSpec, Observation

_AT_ONCE = 32


@dataclass(frozen=True)
class Prediction:
    """The chunks of all frames."""

    checkpoint: str
    chunks: np.ndarray  # float64 [T, H, A], in the units of `readable`
    position_mm: np.ndarray  # float64 [T], distance of the first action's position from the recorded one
    rotation_deg: np.ndarray  # float64 [T], likewise, the length of the difference
    gripper_agrees: np.ndarray  # bool [T]

    @property
    def name(self) -> str:
        """The end of where it is, such as a run's name and `checkpoints/best`."""
        return "/".join(self.checkpoint.rstrip("/").split("/")[-3:])

    def summary(self) -> str:
        """The means, in a line."""
        return (
            f"off by {self.position_mm.mean():.2f} mm and {self.rotation_deg.mean():.2f}° on average, gripper "
            f"right at {self.gripper_agrees.mean():.0%}"
        )


def predict(checkpoint: str, dataset: EpisodeDataset, episode: Episode) -> Prediction:
    """Ask a policy at every frame of an episode. Raises InputError where it cannot be loaded or is for other data."""
    import torch

    from atlas.policies.base import load_policy

    policy = load_policy(checkpoint)
    processor = policy.processor
    _check_fits(policy.processor.action_spec, processor.cameras, dataset, checkpoint)
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    device = next(policy.parameters()).device
    torch.manual_seed(0)  # a generative head draws its noise from torch's own generator
    source = processor.source_for(dataset.environment)
    proprio, chunks = episode.proprio, []
    with progress_bar("asking the policy", len(episode)) as advance:
        for first in range(0, len(episode), _AT_ONCE):
            frames = range(first, min(first + _AT_ONCE, len(episode)))
            images = {camera: episode.images(camera, frames) for camera in processor.cameras}
            observations = [
                Observation({c: images[c][i] for c in images}, np.array(proprio[frame]), episode.instruction)
                for i, frame in enumerate(frames)
            ]
            batch = processor.batch(observations, source).to(device)
            chunks.append(policy.sample(batch).float().cpu().numpy())
            advance(len(frames))
    return compare(checkpoint, np.concatenate(chunks), episode.actions, dataset.action_spec)


def compare(checkpoint: str, chunks: np.ndarray, actions: np.ndarray, spec: ActionSpec) -> Prediction:
    """Chunks float [T, H, A] against the recorded actions [T, A], both in the spec's units."""
    said, done = readable(chunks, spec), readable(actions, spec)
    off = said[:, 0] - done
    return Prediction(
        checkpoint=checkpoint,
        chunks=said,
        position_mm=np.linalg.norm(off[:, slice(*spec.position)], axis=1),
        rotation_deg=np.linalg.norm(off[:, slice(*spec.rotation)], axis=1),
        gripper_agrees=(said[:, 0, spec.gripper] > 0.5) == (done[:, spec.gripper] > 0.5),
    )


def _check_fits(spec: ActionSpec, cameras: tuple[str, ...], dataset: EpisodeDataset, checkpoint: str) -> None:
    missing = [camera for camera in cameras if camera not in dataset.cameras]
    if missing:
        raise InputError(f"{checkpoint} was trained with the cameras {list(cameras)}; {dataset.path} lacks {missing}.")
    if spec.names != dataset.action_spec.names:
        raise InputError(
            f"{checkpoint} predicts {', '.join(spec.names)}; {dataset.path} has {', '.join(dataset.action_spec.names)}."
        )
