"""From predicted chunks to the actions that are executed: the state of a rollout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from atlas.data.sampling.randomness import sample_keys
from atlas.errors import InputError
from atlas.policies.base import Policy
from atlas.policies.processor import PolicyProcessor
from atlas.types import Observation


@dataclass
class _Episode:
    """What is known of a running episode."""

    seed: int = 0
    asked: int = 0  # chunks so far
    chunks: list[np.ndarray] = field(default_factory=list)  # those that reach the present, oldest first; to average


class ChunkExecutor:
    """The actor that a policy is: executes the first `execute` of the H predicted actions before it looks again.

    With `ensemble` it looks at every step instead, and averages what all chunks that reach this step say about it,
    with weights exp(-ensemble * i) for i = 0 (the oldest), 1, … (temporal ensembling, Zhao et al., 2023, section IV-A).
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
    ) -> None:
        """environment: the world's name, by which a policy of several datasets knows whose statistics apply. together:
        whether all episodes are asked in one batch, whatever the device; None: as above."""
        horizon = policy.processor.action_horizon
        if not 1 <= execute <= horizon:
            raise InputError(f"The number of executed actions must be from 1 to {horizon} (the chunk), got {execute}.")
        if ensemble is not None and ensemble < 0:
            raise InputError(f"The ensemble's weight must not be negative, got {ensemble}.")
        self._policy, self._execute, self._ensemble = policy, execute, ensemble
        self._source, self._together = policy.processor.source_for(environment), together
        self._episodes: dict[int, _Episode] = defaultdict(_Episode)

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def processor(self) -> PolicyProcessor:
        """The policy's."""
        return self._policy.processor

    def reset(self, episode: int, seed: int) -> None:
        """Forget an episode's state; call it when one begins. seed: of its policy's random numbers."""
        self._episodes[episode] = _Episode(seed)

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
        parts = [
            self._chunks(seen[first : first + together], episodes[first : first + together], device)
            for first in range(0, len(seen), together)
        ]
        chunks = np.concatenate(parts)  # [n, H, A]
        for episode in episodes:
            episode.asked += 1
        if self._ensemble is None:
            return {number: chunk[: self._execute] for number, chunk in zip(observations, chunks, strict=True)}
        return {
            number: self._average(episode, chunk)
            for number, episode, chunk in zip(observations, episodes, chunks, strict=True)
        }

    def _chunks(
        self, observations: Sequence[Observation], episodes: Sequence[_Episode], device: torch.device
    ) -> np.ndarray:
        """float32 [n, H, A]"""
        batch = self._policy.processor.batch(list(observations), self._source)
        return np.asarray(self._policy.sample(replace(batch, key=_keys(episodes)).to(device)).float().cpu().numpy())

    def _average(self, episode: _Episode, chunk: np.ndarray) -> np.ndarray:
        assert self._ensemble is not None
        history = episode.chunks = [*episode.chunks, chunk][-len(chunk) :]
        # The chunk made `age` steps ago says with its entry `age` what to do now.
        opinions = np.stack([old[age] for age, old in zip(range(len(history) - 1, -1, -1), history, strict=True)])
        weights = np.exp(-self._ensemble * np.arange(len(opinions)))
        return np.asarray((opinions * weights[:, None]).sum(0) / weights.sum(), np.float32)[None]


def _keys(episodes: Sequence[_Episode]) -> torch.Tensor:
    """What the random numbers of each episode's next chunk follow from, int64 [n]."""
    return sample_keys(0, torch.tensor([e.seed for e in episodes]), torch.tensor([e.asked for e in episodes]))
