"""What was experienced, in memory of a fixed size, and drawn from at random.

A row is what was seen at one decision and, once it is known, what was done then and what came of it. What was seen next
is the row after it, so nothing is stored twice: images are there once, as uint8.
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

_OPEN, _DECIDED, _LAST = 0, 1, 2  # of a row: its decision is not known yet; is known; it is what an episode ended in


@dataclass(frozen=True)
class Column:
    """What one part of an observation is, a row of it."""

    shape: tuple[int, ...]
    dtype: str  # numpy's name: float32 for numbers, uint8 for images


@dataclass(frozen=True)
class Drawn:
    """B decisions that were drawn."""

    seen: dict[str, torch.Tensor]  # [B, ...] each
    actions: torch.Tensor  # float32 [B, A]
    returns: torch.Tensor  # float32 [B], the discounted rewards of up to n decisions
    discounts: torch.Tensor  # float32 [B], of the value of what was seen then; 0 where the task was over
    seen_then: dict[str, torch.Tensor]


class Replay:
    """A ring of rows. `begin` an episode with what is seen first, then `extend` it, a decision or several at once."""

    def __init__(self, capacity: int, columns: Mapping[str, Column], action_dim: int, about: str = "") -> None:
        """capacity: rows, one a decision and one an episode. about: the policy and the world that it is of; a replay is
        not loaded into one that is about something else."""
        assert capacity >= 2
        self.capacity, self.about = capacity, about
        # Memory is taken as it is written to.
        self._seen = {name: np.zeros((capacity, *c.shape), c.dtype) for name, c in columns.items()}
        self._actions = np.zeros((capacity, action_dim), np.float32)
        self._rewards = np.zeros(capacity, np.float32)
        self._terminated = np.zeros(capacity, np.bool_)
        self._kind = np.full(capacity, _LAST, np.uint8)
        self._head = -1  # the row that was written last
        self.written = 0  # rows, since the beginning
        self.decisions = 0  # that can be drawn now

    def begin(self, seen: Mapping[str, np.ndarray]) -> None:
        """An episode, or a piece of one, begins with this."""
        if self.written and self._kind[self._head] == _OPEN:
            self._kind[self._head] = _LAST
        self._write({name: values[None] for name, values in seen.items()})

    def extend(
        self,
        actions: np.ndarray,
        rewards: np.ndarray,
        seen_then: Mapping[str, np.ndarray],
        terminated: bool = False,
        over: bool = False,
    ) -> None:
        """Add T decisions: actions [T, A], rewards [T], and what was seen after each, [T, ...], fewer than fit.

        terminated: the last of them ended the task. over: nothing follows in this episode, for whatever reason.
        """
        count, first = len(actions), self._head
        assert self.written and self._kind[first] == _OPEN and count < self.capacity
        rows = (first + np.arange(count)) % self.capacity
        self._write(seen_then)
        self._actions[rows], self._rewards[rows], self._kind[rows] = actions, rewards, _DECIDED
        self._terminated[rows[-1]] = terminated
        self.decisions += count
        if terminated or over:
            self._kind[self._head] = _LAST

    def _write(self, seen: Mapping[str, np.ndarray]) -> None:
        count = len(next(iter(seen.values())))
        rows = (self._head + 1 + np.arange(count)) % self.capacity
        self.decisions -= int((self._kind[rows] == _DECIDED).sum())
        for name, values in seen.items():
            self._seen[name][rows] = values
        self._kind[rows], self._terminated[rows] = _OPEN, False
        self._head = int(rows[-1])
        self.written += count

    def __len__(self) -> int:
        """Rows that are there."""
        return min(self.written, self.capacity)

    @property
    def nbytes(self) -> int:
        """What it takes once it is full."""
        parts = [*self._seen.values(), self._actions, self._rewards, self._terminated, self._kind]
        return sum(part.nbytes for part in parts)

    # ---- drawing ---------------------------------------------------------------------------------------------

    def draw(self, count: int, draw: np.random.Generator, steps: int = 1, gamma: float = 0.99) -> Drawn:
        """`count` decisions, each as likely as any other, with the returns of up to `steps` of them: fewer where the
        episode ends before."""
        assert self.decisions
        rows = np.empty(0, np.int64)
        while len(rows) < count:  # few rows are no decisions
            tried = draw.integers(len(self), size=count - len(rows))
            rows = np.concatenate([rows, tried[self._kind[tried] == _DECIDED]])
        returns, discounts = np.zeros(count, np.float32), np.ones(count, np.float32)
        then, going = rows.copy(), np.ones(count, np.bool_)
        for _ in range(steps):
            returns += np.where(going, discounts * self._rewards[then], 0)
            discounts *= np.where(going, gamma * ~self._terminated[then], 1)
            then = np.where(going, (then + 1) % self.capacity, then)
            going &= self._kind[then] == _DECIDED
        return Drawn(
            self._at(rows),
            torch.from_numpy(self._actions[rows]),
            torch.from_numpy(returns),
            torch.from_numpy(discounts),
            self._at(then),
        )

    def _at(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(values[rows]) for name, values in self._seen.items()}

    # ---- on disk ---------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the rows that are there, atomically."""
        count = len(self)
        state = {name: torch.from_numpy(values[:count]) for name, values in self._columns().items()}
        facts = {"about": self.about, "capacity": self.capacity, "head": self._head, "written": self.written}
        with atomic_path(path) as partial:
            save_nested(partial, {"facts": facts, "rows": state})

    def load(self, path: Path) -> None:
        """Take what `save` wrote. Raises InputError for another policy's or world's, another capacity or form."""
        found: dict[str, Any] = load_nested(path)
        facts, rows, mine = found["facts"], found["rows"], self._columns()
        wanted = {"about": self.about, "capacity": self.capacity}
        differing = [f"{key} is {facts[key]}, not {value}" for key, value in wanted.items() if facts[key] != value]
        if not differing and rows.keys() != mine.keys():
            differing = [f"it holds {', '.join(rows)}, not {', '.join(mine)}"]
        if not differing:
            differing = [
                f"{name} is {list(rows[name].shape[1:])}, not {list(values.shape[1:])}"
                for name, values in mine.items()
                if rows[name].shape[1:] != values.shape[1:]
            ]
        if differing:
            raise InputError(
                f"The replay {path} is of something else: {'; '.join(differing)}. Choose another run_name."
            )
        for name, values in mine.items():
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
        return own | {f"seen/{name}": values for name, values in self._seen.items()}


def draw_mixed(
    own: Replay,
    demonstrations: Replay | None,
    count: int,
    share: float,
    draw: np.random.Generator,
    steps: int = 1,
    gamma: float = 0.99,
) -> Drawn:
    """`count` decisions, of which a share is from demonstrations: half and half in RLPD (Ball et al., 2023)."""
    if demonstrations is None:
        return own.draw(count, draw, steps, gamma)
    shown = round(count * share)
    parts = [own.draw(count - shown, draw, steps, gamma), demonstrations.draw(shown, draw, steps, gamma)]

    def both(name: str) -> dict[str, torch.Tensor]:
        first, second = (getattr(part, name) for part in parts)
        return {key: torch.cat([first[key], second[key]]) for key in first}

    numbers = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("actions", "returns", "discounts")}
    return Drawn(seen=both("seen"), seen_then=both("seen_then"), **numbers)
