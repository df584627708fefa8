"""A replay buffer of fixed size, from which decisions are sampled at random.

A row holds the observation at one decision and, once they are known, the action and its reward. The next observation is
in the row after it, so nothing is stored twice: each image is there once, as uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas.errors import InputError
from atlas.system.files import atomic_path
from atlas.system.tensors import load_nested, save_nested

_OPEN, _DECIDED, _LAST = (
    0,
    1,
    2,
)  # kinds of rows: decision not known yet; decision known; last observation of an episode
_SMALLEST_ERROR = 1e-3  # so that every decision keeps a chance to be drawn
_IMPORTANCE_EXPONENT = 0.4  # of the importance weights, as in the paper; 1 would be the full correction


@dataclass(frozen=True)
class Column:
    """The shape and type of one part of an observation, per row."""

    shape: tuple[int, ...]
    dtype: str  # numpy's name: float32 for numbers, uint8 for images


@dataclass(frozen=True)
class DecisionBatch:
    """B decisions."""

    observations: dict[str, torch.Tensor]  # [B, ...] each
    actions: torch.Tensor  # float32 [B, A]
    returns: torch.Tensor  # float32 [B], the sums of the discounted rewards of up to n decisions
    discounts: torch.Tensor  # float32 [B], of the next observation's value; 0 if the task was over
    next_observations: dict[str, torch.Tensor]
    weights: torch.Tensor | None = None  # float32 [B], at most 1: importance weights, with prioritised sampling
    rows: np.ndarray | None = None  # int64, the replay's rows of the first of them, whose priorities will change

    def to(self, device: torch.device) -> DecisionBatch:
        """The same, on a device."""
        if device.type == "cpu":
            return self
        observations, next_observations = (
            {n: v.to(device) for n, v in each.items()} for each in (self.observations, self.next_observations)
        )
        weights = None if self.weights is None else self.weights.to(device)
        actions, returns, discounts = (each.to(device) for each in (self.actions, self.returns, self.discounts))
        return DecisionBatch(observations, actions, returns, discounts, next_observations, weights, self.rows)


class Replay:
    """A ring of rows. `begin` an episode with its first observation, then `extend` it by one or several decisions.

    With `priority`, decisions with larger value errors when they were last drawn are drawn more often (Schaul et al.,
    2016); new decisions get the largest priority.
    """

    def __init__(
        self, capacity: int, columns: Mapping[str, Column], action_dim: int, about: str = "", priority: float = 0.0
    ) -> None:
        """capacity: in rows, one per decision and one per episode. about: the policy and the world; a saved replay is
        loaded only if it has the same. priority: the exponent of the errors, 0 to 1; 0 samples uniformly."""
        assert capacity >= 2
        self.capacity, self.about = capacity, about
        # The system allocates the memory as rows are written.
        self._observations = {name: np.zeros((capacity, *c.shape), c.dtype) for name, c in columns.items()}
        self._actions = np.zeros((capacity, action_dim), np.float32)
        self._rewards = np.zeros(capacity, np.float32)
        self._terminated = np.zeros(capacity, np.bool_)
        self._kind = np.full(capacity, _LAST, np.uint8)
        self._priority = priority
        self._errors = np.zeros(capacity if priority else 0, np.float32)
        self._head = -1  # the row written last
        self.written = 0  # rows, since the beginning
        self.decisions = 0  # the number that can be drawn now

    def begin(self, observation: Mapping[str, np.ndarray]) -> None:
        """Begin an episode, or a piece of one, with its first observation."""
        if self.written and self._kind[self._head] == _OPEN:
            self._kind[self._head] = _LAST
        self._write({name: values[None] for name, values in observation.items()})

    def extend(
        self,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: Mapping[str, np.ndarray],
        terminated: bool = False,
        over: bool = False,
    ) -> None:
        """Add T decisions, fewer than the capacity: actions [T, A], rewards [T], and the observation after each, [T,
        ...].

        terminated: the last of them ended the task. over: the episode ends here, for whatever reason.
        """
        count, first = len(actions), self._head
        assert self.written and self._kind[first] == _OPEN and count < self.capacity
        rows = (first + np.arange(count)) % self.capacity
        self._write(next_observations)
        self._actions[rows], self._rewards[rows], self._kind[rows] = actions, rewards, _DECIDED
        self._terminated[rows[-1]] = terminated
        self.decisions += count
        if terminated or over:
            self._kind[self._head] = _LAST

    def _write(self, observations: Mapping[str, np.ndarray]) -> None:
        count = len(next(iter(observations.values())))
        rows = (self._head + 1 + np.arange(count)) % self.capacity
        self.decisions -= int((self._kind[rows] == _DECIDED).sum())
        for name, values in observations.items():
            self._observations[name][rows] = values
        self._kind[rows], self._terminated[rows] = _OPEN, False
        if self._priority:
            self._errors[rows] = max(float(self._errors.max()), _SMALLEST_ERROR)
        self._head = int(rows[-1])
        self.written += count

    def __len__(self) -> int:
        """The number of rows stored."""
        return min(self.written, self.capacity)

    @property
    def nbytes(self) -> int:
        """The size in bytes of a full replay."""
        parts = [*self._observations.values(), self._actions, self._rewards, self._terminated, self._kind, self._errors]
        return sum(part.nbytes for part in parts)

    # ---- drawing ---------------------------------------------------------------------------------------------

    def draw(self, count: int, rng: np.random.Generator, steps: int = 1, gamma: float = 0.99) -> DecisionBatch:
        """Sample `count` decisions, with returns over `steps` decisions, or fewer if the episode ends before."""
        assert self.decisions
        rows, weights = self._by_priority(count, rng) if self._priority else (self._uniformly(count, rng), None)
        returns, discounts = np.zeros(count, np.float32), np.ones(count, np.float32)
        next_rows, ongoing = rows.copy(), np.ones(count, np.bool_)
        for _ in range(steps):
            returns += np.where(ongoing, discounts * self._rewards[next_rows], 0)
            discounts *= np.where(ongoing, gamma * ~self._terminated[next_rows], 1)
            next_rows = np.where(ongoing, (next_rows + 1) % self.capacity, next_rows)
            ongoing &= self._kind[next_rows] == _DECIDED
        return DecisionBatch(
            self.observations_at(rows),
            torch.from_numpy(self._actions[rows]),
            torch.from_numpy(returns),
            torch.from_numpy(discounts),
            self.observations_at(next_rows),
            weights,
            rows if self._priority else None,
        )

    def _uniformly(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Rows int64 [count], sampled uniformly."""
        rows = np.empty(0, np.int64)
        while len(rows) < count:  # almost all rows are decisions
            candidates = rng.integers(len(self), size=count - len(rows))
            rows = np.concatenate([rows, candidates[self._kind[candidates] == _DECIDED]])
        return rows

    def _by_priority(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, torch.Tensor]:
        """Rows int64 [count] sampled by priority, and importance weights float32 [count], which correct part of the
        bias."""
        size = len(self)
        chances = np.where(self._kind[:size] == _DECIDED, self._errors[:size].astype(np.float64) ** self._priority, 0)
        sums = np.cumsum(chances)
        rows = np.minimum(np.searchsorted(sums, rng.uniform(0, sums[-1], count), side="right"), size - 1)
        weights = (self.decisions * chances[rows] / sums[-1]) ** -_IMPORTANCE_EXPONENT
        return rows, torch.from_numpy((weights / weights.max()).astype(np.float32))

    def update_priorities(self, rows: np.ndarray, errors: np.ndarray) -> None:
        """Set the priorities of drawn rows to their value errors, float [B]."""
        self._errors[rows] = np.maximum(errors, _SMALLEST_ERROR)

    def evenly(self, count: int) -> np.ndarray:
        """The rows int64 of at most `count` decisions, evenly spaced, the oldest first."""
        begin = self._head + 1 if self.written > self.capacity else 0
        ordered = (begin + np.arange(len(self))) % self.capacity
        decided = ordered[self._kind[ordered] == _DECIDED]
        return decided[np.linspace(0, len(decided) - 1, min(count, len(decided))).astype(np.int64)]

    def returns_from(self, rows: np.ndarray) -> np.ndarray:
        """The sums float32 [n] of the rewards from each of these decisions to the end of what is stored of its
        episode."""
        sums, next_rows = np.zeros(len(rows), np.float32), rows.copy()
        ongoing = self._kind[next_rows] == _DECIDED
        while ongoing.any():
            sums += np.where(ongoing, self._rewards[next_rows], 0)
            next_rows = np.where(ongoing, (next_rows + 1) % self.capacity, next_rows)
            ongoing &= self._kind[next_rows] == _DECIDED
        return sums

    def actions_at(self, rows: np.ndarray) -> torch.Tensor:
        """The scaled actions at these rows, float32 [n, A]."""
        return torch.from_numpy(self._actions[rows])

    def observations_at(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """The observations at these rows, int64 [n]."""
        return {name: torch.from_numpy(values[rows]) for name, values in self._observations.items()}

    # ---- on disk ---------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the stored rows to a file, atomically."""
        count = len(self)
        state = {name: torch.from_numpy(values[:count]) for name, values in self._columns().items()}
        facts = {"about": self.about, "capacity": self.capacity, "head": self._head, "written": self.written}
        with atomic_path(path) as partial:
            save_nested(partial, {"facts": facts, "rows": state})

    def load(self, path: Path) -> None:
        """Load a file written by `save`. Raises InputError if its policy, world, capacity or columns differ."""
        saved: dict[str, Any] = load_nested(path)
        facts, rows, own_columns = saved["facts"], saved["rows"], self._columns()
        expected = {"about": self.about, "capacity": self.capacity}
        differing = [f"{key} is {facts[key]}, not {value}" for key, value in expected.items() if facts[key] != value]
        if not differing and rows.keys() != own_columns.keys():
            differing = [f"it holds {', '.join(rows)}, not {', '.join(own_columns)}"]
        if not differing:
            differing = [
                f"{name} is {list(rows[name].shape[1:])}, not {list(values.shape[1:])}"
                for name, values in own_columns.items()
                if rows[name].shape[1:] != values.shape[1:]
            ]
        if differing:
            raise InputError(
                f"The replay {path} is of something else: {'; '.join(differing)}. Choose another run_name."
            )
        for name, values in own_columns.items():
            values[: len(rows[name])] = rows[name].numpy()
        self._head, self.written = facts["head"], facts["written"]
        self.decisions = int((self._kind == _DECIDED).sum())

    def _columns(self) -> dict[str, np.ndarray]:
        own = {
            "actions": self._actions,
            "rewards": self._rewards,
            "terminated": self._terminated,
            "kind": self._kind,
        }
        if self._priority:
            own["errors"] = self._errors
        return own | {f"seen/{name}": values for name, values in self._observations.items()}


def draw_mixed(
    own: Replay,
    demonstrations: Replay | None,
    count: int,
    share: float,
    rng: np.random.Generator,
    steps: int = 1,
    gamma: float = 0.99,
) -> DecisionBatch:
    """Sample `count` decisions, of which a share is from demonstrations: one half in RLPD (Ball et al., 2023)."""
    if demonstrations is None:
        return own.draw(count, rng, steps, gamma)
    n_demonstrations = round(count * share)
    parts = [
        own.draw(count - n_demonstrations, rng, steps, gamma),
        demonstrations.draw(n_demonstrations, rng, steps, gamma),
    ]

    def joined(name: str) -> dict[str, torch.Tensor]:
        first, second = (getattr(part, name) for part in parts)
        return {key: torch.cat([first[key], second[key]]) for key in first}

    numbers = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("actions", "returns", "discounts")}
    own_weights = parts[0].weights
    weights = None if own_weights is None else torch.cat([own_weights, torch.ones(n_demonstrations)])
    return DecisionBatch(
        observations=joined("observations"),
        next_observations=joined("next_observations"),
        weights=weights,
        rows=parts[0].rows,
        **numbers,
    )
