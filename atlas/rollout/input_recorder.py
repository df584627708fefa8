"""Keeps some of what a policy is shown and says in rollouts, as the network sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from atlas.data.crop_geometry import fit_images
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.actor import Actor
from atlas.types import Observation

_MOST_IMAGES = 300  # of a camera, at the starts and after them


class InputRecorder:
    """Of images, so many are kept that memory stays small; of numbers and words, all."""

    def __init__(self) -> None:
        self.instructions: set[str] = set()
        self._images: dict[tuple[str, bool], list[np.ndarray]] = {}  # by camera, and whether at a start
        self._proprio: list[np.ndarray] = []
        self._starts: list[bool] = []
        self._actions: list[np.ndarray] = []

    def add_observation(self, observation: Observation, start: bool, cameras: Sequence[str], image_size: int) -> None:
        """start: whether it is the first one of its episode, which no action of the policy has led to."""
        self.instructions.add(observation.instruction)
        self._proprio.append(np.asarray(observation.proprio, np.float64))
        self._starts.append(start)
        for camera in cameras:
            images = self._images.setdefault((camera, start), [])
            if len(images) < _MOST_IMAGES:
                fitted = fit_images(observation.images[camera][None], image_size)[0]
                images.append(fitted.permute(1, 2, 0).numpy())

    def add_actions(self, actions: np.ndarray) -> None:
        """actions: [n, A], to be executed."""
        self._actions.append(np.asarray(actions, np.float64))

    def start_images(self, camera: str) -> np.ndarray:
        """The first images of episodes: uint8 [n, H, W, 3]."""
        return np.stack(self._images[camera, True])

    def later_images(self, camera: str) -> np.ndarray:
        """Others of them: uint8 [n, H, W, 3]; there may be none."""
        later = self._images.get((camera, False))
        return self.start_images(camera)[:0] if later is None else np.stack(later)

    @property
    def proprio(self) -> np.ndarray:
        """float64 [observations, P]"""
        return np.stack(self._proprio)

    @property
    def starts(self) -> np.ndarray:
        """bool [observations]"""
        return np.array(self._starts)

    @property
    def actions(self) -> np.ndarray:
        """float64 [steps, A], in the ActionSpec's units"""
        return np.concatenate(self._actions)


class RecordedActor:
    """An actor whose inputs and answers are recorded."""

    def __init__(self, actor: Actor, recorder: InputRecorder) -> None:
        assert actor.processor is not None, "it looks at nothing"
        self.processor: PolicyProcessor = actor.processor
        self._actor, self._recorder = actor, recorder
        self._begun: set[int] = set()  # the episodes of which nothing was shown yet

    def reset(self, episode: int, seed: int) -> None:
        self._begun.add(episode)
        self._actor.reset(episode, seed)

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        for number, observation in observations.items():
            cameras, size = self.processor.cameras, self.processor.image_size
            self._recorder.add_observation(observation, number in self._begun, cameras, size)
        self._begun -= observations.keys()
        planned = self._actor.plan(observations)
        for actions in planned.values():
            self._recorder.add_actions(actions)
        return planned
