"""From predicted chunks to the actions that are executed: the state of a rollout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from atlas.config import EvaluationConfig
from atlas.data.sampling.randomness import sample_keys
from atlas.errors import InputError
from atlas.policies.base import FollowsChunks, Policy
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.chunk_timeline import Blend, ChunkTimeline, check_execution, delay_steps
from atlas.types import Observation


@dataclass
class _Episode:
    """What is known of a running episode."""

    seed: int = 0
    asked: int = 0  # chunks so far
    chunks: list[np.ndarray] = field(default_factory=list)  # those that reach the present, oldest first; to average
    step: int = 0  # so many are executed once what was planned is over
    timeline: ChunkTimeline = field(default_factory=ChunkTimeline)


class ChunkExecutor:
    """The actor that a policy is: executes the first `execute` of the H predicted actions before it looks again.

    With `ensemble` it looks at every step instead, and averages what all chunks that reach this step say about it,
    with weights exp(-ensemble * i) for i = 0 (the oldest), 1, … (temporal ensembling, Zhao et al., 2023, section IV-A).
    With `delay_ms` a chunk is there as late as on a robot: meanwhile what is left of the last one is executed, and the
    actions of the new one for steps that are over are left out. With `blend` the last chunk keeps that weight where
    two overlap; with 'guided' the policy makes the new one go on from the last (`FollowsChunks`).
    Each of the episodes that it drives at once has a number of the caller's choice and its own state. The random
    numbers of a generative policy follow from (the episode's seed, how many chunks it was asked for), so that a rollout
    does not depend on the episodes beside it. On a CPU each is asked by itself, since in a batch the last bits of a sum
    depend on how many there are, and contact makes much of little; on a GPU, where that would take many times as long,
    all are asked together.
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
        """environment: the world's name, by which a policy of several datasets knows whose statistics apply. together:
        whether all episodes are asked in one batch, whatever the device; None: as above."""
        horizon, hz = policy.processor.action_horizon, policy.processor.action_spec.control_hz
        check_execution(horizon, hz, execute, ensemble, delay_ms, blend)
        check_guided(policy, blend)
        self._delay, self._blend = delay_steps(delay_ms, hz), blend
        self._policy, self._execute, self._ensemble = policy, execute, ensemble
        self._source, self._together = policy.processor.source_for(environment), together
        self._episodes: dict[int, _Episode] = defaultdict(self._new_episode)

    @classmethod
    def configured(cls, policy: Policy, config: EvaluationConfig, environment: str | None) -> ChunkExecutor:
        """As a config has it executed."""
        return cls(policy, config.execute, config.ensemble, environment, delay_ms=config.delay_ms, blend=config.blend)

    def _new_episode(self, seed: int = 0) -> _Episode:
        return _Episode(seed, timeline=ChunkTimeline(0.0 if self._blend in (None, "guided") else float(self._blend)))

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def processor(self) -> PolicyProcessor:
        """The policy's."""
        return self._policy.processor

    def reset(self, episode: int, seed: int) -> None:
        """Forget an episode's state; call it when one begins. seed: of its policy's random numbers."""
        self._episodes[episode] = self._new_episode(seed)

    def forget(self, episode: int) -> None:
        """Keep nothing of an episode that nobody will ask about again."""
        self._episodes.pop(episode, None)

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Of each episode the actions [n, A] to execute before it must be observed again, in the ActionSpec's units."""
        device = next(self._policy.parameters()).device
        episodes = [self._episodes[number] for number in observations]
        seen = list(observations.values())
        in_one = device.type != "cpu" if self._together is None else self._together
        together = max(1, len(seen)) if in_one else 1
        rests = [self._rest(episode) for episode in episodes]
        chunks = np.empty((len(seen), self.processor.action_horizon, self.processor.action_spec.dim), np.float32)
        for length in sorted({len(rest) for rest in rests}):
            alike = [place for place, rest in enumerate(rests) if len(rest) == length]
            for first in range(0, len(alike), together):
                some = alike[first : first + together]
                rest = np.stack([rests[place] for place in some])
                chunks[some] = self._chunks([seen[p] for p in some], [episodes[p] for p in some], rest, device)
        for episode in episodes:
            episode.asked += 1
        executed = self._average if self._ensemble is not None else self._late
        return {
            number: executed(episode, chunk)
            for number, episode, chunk in zip(observations, episodes, chunks, strict=True)
        }

    def _rest(self, episode: _Episode) -> np.ndarray:
        """What is planned from the present step on, float32 [R, A], where the policy is to go on from it."""
        planned = (
            episode.timeline.take(episode.step, self.processor.action_horizon) if self._blend == "guided" else None
        )
        return np.empty((0, self.processor.action_spec.dim), np.float32) if planned is None else planned

    def _chunks(
        self,
        observations: Sequence[Observation],
        episodes: Sequence[_Episode],
        rest: np.ndarray,
        device: torch.device,
    ) -> np.ndarray:
        """float32 [n, H, A]; rest [n, R, A]: see `_rest`."""
        batch = replace(self._policy.processor.batch(list(observations), self._source), key=_keys(episodes)).to(device)
        if not rest.shape[1]:
            return np.asarray(self._policy.sample(batch).float().cpu().numpy())
        assert isinstance(self._policy, FollowsChunks)
        previous = torch.from_numpy(rest).to(device)
        return np.asarray(self._policy.sample_following(batch, previous, self._delay).float().cpu().numpy())

    def _late(self, episode: _Episode, chunk: np.ndarray) -> np.ndarray:
        """Of the chunk [H, A] about the present step what is executed until the next one is asked for."""
        if not self._delay and self._blend is None:
            return chunk[: self._execute]
        now, timeline = episode.step, episode.timeline
        before = timeline.take(now, self._delay)
        late = 0 if before is None else len(before)  # the first chunk is waited for
        timeline.add(chunk, now, now + late)
        after = timeline.take(now + late, self._execute - late)
        episode.step += self._execute
        return np.concatenate([part for part in (before, after) if part is not None])

    def _average(self, episode: _Episode, chunk: np.ndarray) -> np.ndarray:
        assert self._ensemble is not None
        history = episode.chunks = [*episode.chunks, chunk][-len(chunk) :]
        # The chunk made `age` steps ago says with its entry `age` what to do now.
        opinions = np.stack([old[age] for age, old in zip(range(len(history) - 1, -1, -1), history, strict=True)])
        weights = np.exp(-self._ensemble * np.arange(len(opinions)))
        return np.asarray((opinions * weights[:, None]).sum(0) / weights.sum(), np.float32)[None]


def check_guided(policy: Policy, blend: Blend) -> None:
    """Raises InputError where a policy cannot make a chunk go on from the last one, and is asked to."""
    if blend == "guided" and not (isinstance(policy, FollowsChunks) and policy.follows):
        raise InputError(
            "blend is guided, which is for policies that make actions of noise, such as those with a flow-matching "
            f"head; this one, of the type {policy.config.type}, does not. Give a weight instead, such as 0.3."
        )


def _keys(episodes: Sequence[_Episode]) -> torch.Tensor:
    """What the random numbers of each episode's next chunk follow from, int64 [n]."""
    return sample_keys(0, torch.tensor([e.seed for e in episodes]), torch.tensor([e.asked for e in episodes]))
