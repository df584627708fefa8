"""From predicted chunks to the actions that are executed: the state of a rollout."""

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
    """What is known of a running episode."""

    execution: ChunkExecution
    seed: int = 0
    asked: int = 0  # chunks so far


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
        self._how = Execution(horizon, hz, execute, ensemble, delay_ms, blend)
        check_guided(policy, blend)
        self._policy = policy
        self._source, self._together = policy.processor.source_for(environment), together
        self._episodes: dict[int, _Episode] = defaultdict(self._new_episode)

    @classmethod
    def configured(cls, policy: Policy, config: EvaluationConfig, environment: str | None) -> ChunkExecutor:
        """As a config has it executed."""
        return cls(policy, config.execute, config.ensemble, environment, delay_ms=config.delay_ms, blend=config.blend)

    def _new_episode(self, seed: int = 0) -> _Episode:
        return _Episode(ChunkExecution(self._how), seed)

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

    @property
    def follows(self) -> bool:
        """See `FollowingActor`."""
        return isinstance(self._policy, FollowsChunks) and self._policy.follows

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Of each episode the actions [n, A] to execute before it must be observed again, in the ActionSpec's units."""
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
        """float32 [n, H, A]; rests: of each, or of none, the actions [R, A] to go on from."""
        batch = replace(self._policy.processor.batch(list(observations), self._source), key=_keys(episodes)).to(device)
        if not rests:
            return np.asarray(self._policy.sample(batch).float().cpu().numpy())
        assert isinstance(self._policy, FollowsChunks)
        previous = torch.from_numpy(np.stack(rests)).to(device)
        return np.asarray(self._policy.sample_following(batch, previous, delay).float().cpu().numpy())


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
