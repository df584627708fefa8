"""Records a policy's inputs, as the network sees them, and its actions in rollouts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from atlas.data.image_fit import fit_images
from atlas.policies.base import Policy
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.actor import Actor
from atlas.types import Observation

_MOST_IMAGES = 300  # per camera, separately for first and later images


@dataclass
class Decision:
    """The inputs of a decision, and the actions planned until the next one."""

    proprio: np.ndarray  # float64 [P]
    pictures: tuple[bytes, ...]  # a hash of each camera's image
    actions: np.ndarray | None = None  # float64 [n, A]; None until they are planned


@dataclass
class PlayedDecisions:
    """An episode as the policy saw it."""

    seed: int | None
    instruction: str  # the one given to the policy
    decisions: list[Decision] = field(default_factory=list)


class InputRecorder:
    """Keeps all numbers and words, but only so many images that memory stays small.

    policy: the acting policy, where it is in this process.
    """

    def __init__(self) -> None:
        self.instructions: set[str] = set()
        self.episodes: list[PlayedDecisions] = []
        self.policy: Policy | None = None
        self._images: dict[tuple[str, bool], list[np.ndarray]] = {}  # by camera, and whether at a start
        self._starts: list[bool] = []
        self._proprio: list[np.ndarray] = []
        self._running: dict[int, PlayedDecisions] = {}

    def add_observation(
        self,
        observation: Observation,
        start: bool,
        cameras: Sequence[str],
        image_size: int,
        episode: int = 0,
        seed: int | None = None,
    ) -> None:
        """start: whether it is its episode's first observation, which follows from no action of the policy. episode:
        the number among those that run side by side."""
        self.instructions.add(observation.instruction)
        proprio = np.asarray(observation.proprio, np.float64)
        self._proprio.append(proprio)
        self._starts.append(start)
        if start or episode not in self._running:
            self._running[episode] = PlayedDecisions(seed, observation.instruction)
            self.episodes.append(self._running[episode])
        hashes = tuple(hashlib.blake2b(observation.images[c].tobytes(), digest_size=8).digest() for c in cameras)
        self._running[episode].decisions.append(Decision(proprio, hashes))
        for camera in cameras:
            images = self._images.setdefault((camera, start), [])
            if len(images) < _MOST_IMAGES:
                fitted = fit_images(observation.images[camera][None], image_size)[0]
                images.append(fitted.permute(1, 2, 0).numpy())

    def add_actions(self, actions: np.ndarray, episode: int = 0) -> None:
        """actions: [n, A], planned for the last observation of the episode."""
        self._running[episode].decisions[-1].actions = np.asarray(actions, np.float64)

    def start_images(self, camera: str) -> np.ndarray:
        """The first images of episodes: uint8 [n, H, W, 3]."""
        return np.stack(self._images[camera, True])

    def later_images(self, camera: str) -> np.ndarray:
        """Later images of episodes: uint8 [n, H, W, 3]; n may be 0."""
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
        decisions = [decision for episode in self.episodes for decision in episode.decisions]
        return np.concatenate([decision.actions for decision in decisions if decision.actions is not None])


class RecordedActor:
    """An actor whose inputs and answers are recorded."""

    def __init__(self, actor: Actor, recorder: InputRecorder) -> None:
        assert actor.processor is not None, "the actor uses no observations"
        self.processor: PolicyProcessor = actor.processor
        self._actor, self._recorder = actor, recorder
        self._begun: dict[int, int] = {}  # the seeds of episodes without an observation so far

    def reset(self, episode: int, seed: int) -> None:
        self._begun[episode] = seed
        self._actor.reset(episode, seed)

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        for number, observation in observations.items():
            cameras, size = self.processor.cameras, self.processor.image_size
            seed = self._begun.get(number)
            self._recorder.add_observation(observation, seed is not None, cameras, size, number, seed)
            self._begun.pop(number, None)
        planned = self._actor.plan(observations)
        for number, actions in planned.items():
            self._recorder.add_actions(actions, number)
        return planned
