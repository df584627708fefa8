"""Records where a policy looks at each of its decisions, for a rollout's films."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from atlas.errors import InputError
from atlas.policies.attention import ShowsAttention
from atlas.policies.base import Policy
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.actor import Actor
from atlas.rollout.filming.attention_column import Look
from atlas.types import Observation


class WatchedActor:
    """A policy's actor that records at each decision where the policy looks."""

    def __init__(self, actor: Actor, policy: Policy, source: int = 0) -> None:
        """source: see `PolicyProcessor.batch`. Raises InputError for a policy that cannot show where it looks."""
        if not isinstance(policy, ShowsAttention):
            raise InputError(
                f"A policy of the type '{policy.config.type}' cannot show where it looks: leave out --show attention."
            )
        self.processor: PolicyProcessor = policy.processor
        self.looks: dict[int, list[Look]] = {}  # {an episode's seed: its decisions}
        self._actor, self._policy, self._source = actor, policy, source
        self._attention = policy.attention
        self._seeds: dict[int, int] = {}
        self._steps: dict[int, int] = {}

    def reset(self, episode: int, seed: int) -> None:
        self._seeds[episode], self._steps[episode] = seed, 0
        self.looks[seed] = []
        self._actor.reset(episode, seed)

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        for number, observation in observations.items():
            self.looks[self._seeds[number]].append(self._look(observation, self._steps[number]))
        planned = self._actor.plan(observations)
        for number, actions in planned.items():
            self._steps[number] += len(actions)
        return planned

    def _look(self, observation: Observation, step: int) -> Look:
        batch = self.processor.batch([observation], self._source)
        assert batch.images is not None
        present = slice(-len(self.processor.cameras), None)  # the last views, after those of earlier frames
        images = np.asarray(batch.images[0, present].permute(0, 2, 3, 1).numpy())  # [V, S, S, 3]
        with torch.no_grad():
            found = self._attention(batch.to(next(self._policy.parameters()).device))
        if found is None:
            raise InputError("This policy's parts cannot show where it looks: leave out --show attention.")
        points, maps = (
            None if each is None else each[0, present].float().cpu().numpy() for each in (found.points, found.maps)
        )
        return Look(step, images, points, maps)
