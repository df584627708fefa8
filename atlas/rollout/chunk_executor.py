"""Turns predicted chunks into executed actions, and keeps the state of a rollout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from atlas.config import EvaluationConfig
from atlas.data.sampling.randomness import sample_keys
from atlas.errors import InputError
from atlas.policies.base import FollowsChunks, Policy
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.chunk_timeline import Blend, ChunkExecution, Execution, RunningChunk
from atlas.types import Observation


@dataclass
class _Episode:
    """The state of a running episode."""

    execution: ChunkExecution
    seed: int = 0
    asked: int = 0  # chunks predicted so far


class ChunkExecutor:
    """A policy as an actor: executes the first `execute` of the H predicted actions before it looks again.

    With `ensemble` it looks at every step, and averages the actions that all chunks predict for this step, with weights
    exp(-ensemble * i) for i = 0 (the oldest), 1, … (temporal ensembling, Zhao et al., 2023, section IV-A). With
    `delay_ms` a chunk arrives as late as on a robot: until then the rest of the previous chunk is executed, and the new
    chunk's actions for steps that have passed are dropped. With `blend` the previous chunk keeps that weight where two
    overlap; with 'guided' the policy makes the new chunk continue the previous one (`FollowsChunks`).
    Each of the episodes that run side by side has a number of the caller's choice and its own state. The random numbers
    of a generative policy follow from (the episode's seed, the number of chunks so far), so that a rollout does not
    depend on the other episodes. On a CPU each episode is planned by itself, because the last bits of a sum depend on
    the batch size, and contacts amplify small differences; on a GPU, where that would take many times as long, all are
    planned together.
    """

    def __init__(
        self,
        policy: Policy,
        execute: int,
        ensemble: float | None = None,
        environment: str | None = None,
        together: bool | None = None,
        delay_ms: float = 0.0,
        blend: Blend = None,
    ) -> None:
        """environment: the world's name, which selects the statistics of a policy trained on several datasets.
        together: whether all episodes are planned in one batch, whatever the device; None: as above."""
        horizon, hz = policy.processor.action_horizon, policy.processor.action_spec.control_hz
        self._how = Execution(horizon, hz, execute, ensemble, delay_ms, blend)
        check_guided(policy, blend)
        self._policy = policy
        self._source, self._together = policy.processor.source_for(environment), together
        self._episodes: dict[int, _Episode] = defaultdict(self._new_episode)

    @classmethod
    def configured(cls, policy: Policy, config: EvaluationConfig, environment: str | None) -> ChunkExecutor:
        """An executor with a config's settings."""
        return cls(policy, config.execute, config.ensemble, environment, delay_ms=config.delay_ms, blend=config.blend)

    def _new_episode(self, seed: int = 0) -> _Episode:
        return _Episode(ChunkExecution(self._how), seed)

    @property
    def validated_execute(self) -> int | None:
        return self._policy.validated_execute

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def processor(self) -> PolicyProcessor:
        """The policy's processor."""
        return self._policy.processor

    def reset(self, episode: int, seed: int) -> None:
        """Begin an episode, and forget the previous one of this number. seed: for the policy's random numbers."""
        self._episodes[episode] = self._new_episode(seed)

    def forget(self, episode: int) -> None:
        """Drop the state of an episode that has ended."""
        self._episodes.pop(episode, None)

    @property
    def follows(self) -> bool:
        """See `FollowingActor`."""
        return isinstance(self._policy, FollowsChunks) and self._policy.follows

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Return each episode's actions [n, A] to execute before the next observation, in the ActionSpec's units."""
        found = {number: self._episodes[number].execution.running() for number in observations}
        return self.plan_following(observations, {number: rest for number, rest in found.items() if rest is not None})

    def plan_following(
        self, observations: Mapping[int, Observation], running: Mapping[int, RunningChunk]
    ) -> dict[int, np.ndarray]:
        """See `FollowingActor`."""
        device = next(self._policy.parameters()).device
        episodes = [self._episodes[number] for number in observations]
        seen = list(observations.values())
        in_one = device.type != "cpu" if self._together is None else self._together
        together = max(1, len(seen)) if in_one else 1
        before = [running.get(number) for number in observations]
        forms = [(0, 0) if each is None else (len(each.rest), each.delay) for each in before]
        chunks = np.empty((len(seen), self.processor.action_horizon, self.processor.action_spec.dim), np.float32)
        for form in sorted(set(forms)):
            alike = [place for place, own in enumerate(forms) if own == form]
            for first in range(0, len(alike), together):
                some = alike[first : first + together]
                rests = [each.rest for place in some if (each := before[place]) is not None]
                chunks[some] = self._chunks(
                    [seen[place] for place in some], [episodes[place] for place in some], rests, form[1], device
                )
        for episode in episodes:
            episode.asked += 1
        return {
            number: episode.execution.taken(chunk)
            for number, episode, chunk in zip(observations, episodes, chunks, strict=True)
        }

    def _chunks(
        self,
        observations: Sequence[Observation],
        episodes: Sequence[_Episode],
        rests: Sequence[np.ndarray],
        delay: int,
        device: torch.device,
    ) -> np.ndarray:
        """float32 [n, H, A]; rests: for each episode the actions [R, A] to continue, or empty."""
        batch = replace(self._policy.processor.batch(list(observations), self._source), key=_keys(episodes)).to(device)
        if not rests:
            return np.asarray(self._policy.sample(batch).float().cpu().numpy())
        assert isinstance(self._policy, FollowsChunks)
        previous = torch.from_numpy(np.stack(rests)).to(device)
        return np.asarray(self._policy.sample_following(batch, previous, delay).float().cpu().numpy())


def check_guided(policy: Policy, blend: Blend) -> None:
    """Raise InputError where blend is 'guided' and the policy cannot make a chunk continue the previous one."""
    if blend == "guided" and not (isinstance(policy, FollowsChunks) and policy.follows):
        raise InputError(
            "blend is guided, which is for policies that make actions from noise, such as those with a flow-matching "
            f"head; this one, of the type {policy.config.type}, does not. Give a weight instead, such as 0.3."
        )


def _keys(episodes: Sequence[_Episode]) -> torch.Tensor:
    """The keys of the random numbers of each episode's next chunk, int64 [n]."""
    return sample_keys(0, torch.tensor([e.seed for e in episodes]), torch.tensor([e.asked for e in episodes]))
