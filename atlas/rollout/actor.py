"""Who acts in an environment: a policy, a client of a policy's server, recorded actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from atlas.data.sampling.history import ONE_FRAME, History
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.chunk_timeline import RunningChunk
from atlas.types import Observation

_UNSEEN = 16  # pixels, for an actor that looks at nothing


class Actor(Protocol):
    """Says what to do next in episodes that run side by side, each of which has a number of the caller's choice."""

    @property
    def processor(self) -> PolicyProcessor | None:
        """Which cameras it looks at, at which size, and what its actions mean; None where it looks at nothing."""
        ...

    def reset(self, episode: int, seed: int) -> None:
        """Forget what was under this number: an episode begins. seed: of the random numbers that it may draw."""
        ...

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Of each episode the actions [n, A] to execute before it must be observed again, in the ActionSpec's units. No
        actions, [0, A], end the episode."""
        ...


@runtime_checkable
class FollowingActor(Actor, Protocol):
    """An actor that can make a chunk go on from what is still being executed (real-time chunking)."""

    @property
    def follows(self) -> bool:
        """Whether it can, with the policy that it has."""
        ...

    def plan_following(
        self, observations: Mapping[int, Observation], running: Mapping[int, RunningChunk]
    ) -> dict[int, np.ndarray]:
        """As `plan`; the chunks of the episodes in `running` go on from what is left there."""
        ...


def history_of(actor: Actor) -> History:
    """The frames that an actor looks at."""
    return ONE_FRAME if actor.processor is None else actor.processor.history


def image_size_for(actor: Actor) -> int:
    """The side of the square images that an environment is to show an actor, in pixels."""
    return _UNSEEN if actor.processor is None else actor.processor.camera_size


class AblatedActor:
    """An actor that is told less than the truth, to see what it relies on; what is scored stays the same."""

    def __init__(
        self, actor: Actor, instructions: Sequence[str], shuffle_instructions: bool = False, blind: bool = False
    ) -> None:
        """instructions: the environment's; shuffled, the next of them is said instead of the right one. blind: images
        are black."""
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
