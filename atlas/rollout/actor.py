"""The contract of actors in an environment: a policy, a client of a policy server, recorded actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from atlas.data.sampling.history import ONE_FRAME, History
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.chunk_timeline import RunningChunk
from atlas.types import Observation

_UNSEEN = 16  # pixels, for an actor that uses no images


class Actor(Protocol):
    """Chooses the next actions in episodes that run side by side, each with a number of the caller's choice."""

    @property
    def processor(self) -> PolicyProcessor | None:
        """Its cameras, their image size and the meaning of its actions; None for an actor that uses no observations."""
        ...

    def reset(self, episode: int, seed: int) -> None:
        """Begin an episode, and forget the previous one of this number. seed: for the random numbers that it draws."""
        ...

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Return for each episode the actions [n, A] to execute before the next observation, in the ActionSpec's units.
        No actions, [0, A], end the episode."""
        ...


@runtime_checkable
class FollowingActor(Actor, Protocol):
    """An actor that can make a chunk continue the one being executed (real-time chunking)."""

    @property
    def follows(self) -> bool:
        """Whether it can, with its policy."""
        ...

    def plan_following(
        self, observations: Mapping[int, Observation], running: Mapping[int, RunningChunk]
    ) -> dict[int, np.ndarray]:
        """Like `plan`; the chunks of the episodes in `running` continue the chunks given there."""
        ...


def history_of(actor: Actor) -> History:
    """The frames that an actor looks at."""
    return ONE_FRAME if actor.processor is None else actor.processor.history


def image_size_for(actor: Actor) -> int:
    """The side, in pixels, of the square images that an actor needs from an environment."""
    return _UNSEEN if actor.processor is None else actor.processor.camera_size


class AblatedActor:
    """An actor with falsified observations, which shows what it relies on; scoring is unchanged."""

    def __init__(
        self, actor: Actor, instructions: Sequence[str], shuffle_instructions: bool = False, blind: bool = False
    ) -> None:
        """instructions: the environment's; if shuffled, each is replaced by the next. blind: images are black."""
        self._actor, self._instructions = actor, instructions
        self._shuffle_instructions, self._blind = shuffle_instructions, blind

    @property
    def processor(self) -> PolicyProcessor | None:
        return self._actor.processor

    def reset(self, episode: int, seed: int) -> None:
        self._actor.reset(episode, seed)

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        return self._actor.plan({number: self._ablated(observation) for number, observation in observations.items()})

    def _ablated(self, observation: Observation) -> Observation:
        if self._shuffle_instructions:
            place = self._instructions.index(observation.instruction) + 1
            observation = replace(observation, instruction=self._instructions[place % len(self._instructions)])
        if self._blind:
            observation = replace(_black(observation), past=tuple(_black(each) for each in observation.past))
        return observation


def _black(observation: Observation) -> Observation:
    return replace(observation, images={c: np.zeros_like(image) for c, image in observation.images.items()})
