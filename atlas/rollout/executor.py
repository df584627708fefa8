"""From predicted chunks to the actions that are executed: the state of a rollout."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from atlas.errors import InputError
from atlas.policy.processor import PolicyProcessor
from atlas.types import Batch, Observation


class Policy(Protocol):
    processor: PolicyProcessor

    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor: ...

    def parameters(self) -> object: ...


class ChunkExecutor:
    """Executes the first `execute` of the H predicted actions before it looks again.

    With `ensemble` it looks at every step instead, and averages what all chunks that reach this step say about it,
    with weights exp(-ensemble * i) for i = 0 (the oldest), 1, … (temporal ensembling, Zhao et al., 2023, section IV-A).
    One executor can drive several episodes at once; each has a key of the caller's choice and its own state.
    """

    def __init__(self, policy: Policy, execute: int, ensemble: float | None = None) -> None:
        horizon = policy.processor.action_horizon
        if not 1 <= execute <= horizon:
            raise InputError(f"The number of executed actions must be from 1 to {horizon} (the chunk), got {execute}.")
        if ensemble is not None and ensemble < 0:
            raise InputError(f"The ensemble's weight must not be negative, got {ensemble}.")
        self._policy, self._execute, self._ensemble = policy, execute, ensemble
        self._chunks: dict[int, deque[np.ndarray]] = defaultdict(lambda: deque(maxlen=horizon))
        self._queue: deque[np.ndarray] = deque()

    def reset(self, episode: int = 0) -> None:
        """Forget an episode's state; call it when one begins."""
        self._chunks.pop(episode, None)
        self._queue.clear()

    def act(self, observation: Observation) -> np.ndarray:
        """The next action [A] of a single episode; the policy is asked only when a new chunk is due."""
        if not self._queue:
            self._queue.extend(self.plan({0: observation})[0])
        return self._queue.popleft()

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Of each episode the actions [n, A] to execute before it must be observed again, in the ActionSpec's units."""
        device = next(iter(self._policy.parameters())).device  # type: ignore[call-overload]
        batch = self._policy.processor.batch(list(observations.values())).to(device)
        chunks = self._policy.sample(batch).float().cpu().numpy()  # [episodes, H, A]
        if self._ensemble is None:
            return {key: chunk[: self._execute] for key, chunk in zip(observations, chunks, strict=True)}
        return {key: self._average(key, chunk) for key, chunk in zip(observations, chunks, strict=True)}

    def _average(self, key: int, chunk: np.ndarray) -> np.ndarray:
        assert self._ensemble is not None
        history = self._chunks[key]
        history.append(chunk)
        # The chunk made `age` steps ago says with its entry `age` what to do now.
        opinions = np.stack([old[age] for age, old in zip(range(len(history) - 1, -1, -1), history, strict=True)])
        weights = np.exp(-self._ensemble * np.arange(len(opinions)))
        return np.asarray((opinions * weights[:, None]).sum(0) / weights.sum(), np.float32)[None]
