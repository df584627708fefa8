"""A test before the first motion: the server gets a dataset's frames, and its actions are compared with the recorded.

The frames take the whole path of a robot's messages: packed, sent, mapped, fitted, normalised, and back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atlas.data.episode import EpisodeDataset, frame_instructions
from atlas.data.sampling.history import recorded_observations
from atlas.errors import InputError
from atlas.serving.access import Access
from atlas.serving.policy_client import AtlasClient
from atlas.serving.policy_service import ServedActor
from atlas.serving.server import ServerSettings, serving_in_a_thread
from atlas.system.progress import progress_bar
from atlas.types import ActionSpec

_MOST_FRAMES = 40  # per episode


@dataclass(frozen=True)
class DryRun:
    """The result of a replay. errors: {name: (the policy's error, the error of the mean recorded action)}."""

    dataset: str
    episodes: int
    frames: int
    errors: dict[str, tuple[float, float]]
    worst: tuple[int, int, float]  # episode, frame and `pose_l1_error` of the worst actions
    latency_ms: tuple[float, float]  # median and 99th percentile, from request to answer

    def to_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        return {
            "dataset": self.dataset,
            "episodes": self.episodes,
            "frames": self.frames,
            "errors": {name: policy for name, (policy, _) in self.errors.items()},
            "errors_of_the_mean": {name: mean for name, (_, mean) in self.errors.items()},
            "worst": dict(zip(("episode", "frame", "pose_l1_error"), self.worst, strict=True)),
            "looks": self.looks,
            "latency_p50_ms": self.latency_ms[0],
            "latency_p99_ms": self.latency_ms[1],
        }

    @property
    def looks(self) -> bool:
        """Whether the actions are nearer to the recorded ones than the mean action is: a policy that ignores its images
        cannot do better than the mean."""
        policy, mean = self.errors["pose_l1_error"]
        return policy < mean


def dry_run(actor: ServedActor, settings: ServerSettings, dataset: EpisodeDataset, episodes: int = 5) -> DryRun:
    """Serve an actor on a free port of this machine, and ask it about frames of a dataset's episodes.

    Raises InputError where the dataset lacks a camera, or its proprio or its actions differ from the policy's.
    """
    check_fits(actor, dataset)
    local = replace(settings, protocol="openpi", access=Access(port=0, key=settings.access.key))
    with serving_in_a_thread(actor, local) as port:
        sends = settings.execute or actor.processor.action_horizon
        with AtlasClient(f"ws://127.0.0.1:{port}", sends, settings.access.key) as client:
            return replay(client, dataset, episodes)


def check_fits(actor: ServedActor, dataset: EpisodeDataset) -> None:
    """Raise InputError where a policy cannot take a dataset's frames."""
    processor, wrong = actor.processor, []
    if missing := [camera for camera in processor.cameras if camera not in dataset.cameras]:
        wrong.append(f"the policy looks through {missing}, and the dataset has {list(dataset.cameras)}")
    if processor.proprio_dim != dataset.proprio_dim:
        wrong.append(f"the policy's proprio has {processor.proprio_dim} numbers, the dataset's {dataset.proprio_dim}")
    for what, policys, datasets in processor.action_spec.differences(dataset.action_spec):
        wrong.append(f"{what} is {policys} in the policy's actions, and {datasets} in the dataset's")
    if wrong:
        raise InputError(f"--dry-run {dataset.path} does not fit the policy: {'; '.join(wrong)}.")


def replay(client: AtlasClient, dataset: EpisodeDataset, episodes: int) -> DryRun:
    """Ask a server about frames of some episodes, in their order, and compare its answers with the recorded actions."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(episodes, len(dataset))).round().astype(int)).tolist()
    mean = dataset.numbers().actions.mean(0)
    processor = client.processor
    predicted, recorded, places, seconds = [], [], [], []
    with progress_bar("asking about recorded frames", len(chosen)) as advance:
        for number in chosen:
            episode = dataset.episode(number)
            client.reset(number, seed=number)
            instructions = frame_instructions(dataset, number)
            step = max(1, -(-len(episode) // _MOST_FRAMES))
            for frame in range(0, len(episode), step):
                (observation,) = recorded_observations(
                    episode, [frame], processor.cameras, processor.history, instructions
                )
                begun = time.perf_counter()
                actions = client.plan({number: observation})[number]
                seconds.append(time.perf_counter() - begun)
                demonstrated = episode.actions[frame : frame + len(actions)]
                predicted.append(actions[: len(demonstrated)])
                recorded.append(demonstrated)
                places.append((number, frame))
            advance(1)
    each = [_errors(dataset.action_spec, p, r) for p, r in zip(predicted, recorded, strict=True)]
    all_recorded = np.concatenate(recorded)
    of_all = _errors(dataset.action_spec, np.concatenate(predicted), all_recorded)
    of_mean = _errors(dataset.action_spec, np.broadcast_to(mean, all_recorded.shape), all_recorded)
    far = int(np.argmax([errors["pose_l1_error"] for errors in each]))
    p50, p99 = np.percentile(1000 * np.array(seconds), [50, 99]).tolist()
    return DryRun(
        str(dataset.path),
        len(chosen),
        len(places),
        {name: (value, of_mean[name]) for name, value in of_all.items()},
        (*places[far], each[far]["pose_l1_error"]),
        (p50, p99),
    )


def _errors(spec: ActionSpec, predicted: np.ndarray, recorded: np.ndarray) -> dict[str, float]:
    """Mean errors over actions [n, A]."""
    import torch

    errors = spec.errors(torch.from_numpy(np.array(predicted)), torch.from_numpy(np.array(recorded)))
    return {name: float(value.mean()) for name, value in errors.items()}
