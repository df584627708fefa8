"""The hand's motion after the actions, learned from recordings: with what delay, by how much, along which axes.

The hand's motion from t to t + 1 is regressed on the actions around t (a finite impulse response, the same for all
axes). If actions and observations belong together, the response begins with the action at t: later actions have no
weight, and the first weight is that of t. robosuite's OSC_POSE controller at 20 Hz, which is LIBERO's, responds within
two steps (weights of about 0.10, 0.08, 0.02 of the commanded metres) and so by about a fifth in all: each command is
relative to where the hand is, and gets only one step of time.

An arm whose controller adds each command to the target that it had lags behind that target, and goes on answering for
dozens of frames: such an answer has a tail, which a few more weights describe, each of the mean of several actions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from atlas.types import ActionSpec

LAGS = np.arange(-4, 6)  # frames between an action and the motion it may explain; negative: the action comes later
_TAIL = ((6, 8), (9, 13), (14, 22), (23, 40))  # lags, both included, whose actions share a weight
_ANSWER = 4  # lags, from the first one with weight, whose weights make up the gain
_FEWEST_ROWS = 90  # for 10 weights
_MOST_ROWS = 5000
_SMALLEST_R2 = 0.3
_STARTS = 0.4  # of the largest weight: where the response begins
_RIDGE = 1e-3
_STILL_ACTION, _STILL_M = 1e-3, 1e-5

Recorded = Sequence[tuple[np.ndarray, np.ndarray]]  # actions [T, A] and proprio [T, P] of episodes


@dataclass(frozen=True)
class MotionFit:
    """The response of the hand's position to the actions' position."""

    weights: np.ndarray  # [lags], metres per frame for an action of 1
    r2: float  # the explained share of the motion's variance
    delay: int  # frames from an action to the first motion that it explains
    gain: float  # the share of the commanded metres that is moved
    axes: tuple[tuple[int, int], ...]  # for each axis of the hand, which action axis moves it, and with which sign
    axes_r2: float  # with these axes
    tail: tuple[float, ...] = ()  # metres per frame for a mean of 1 over the lags of `tail_of`; () for a short answer

    def to_dict(self) -> dict[str, Any]:
        told = {**asdict(self), "weights": self.weights.tolist(), "axes": [list(axis) for axis in self.axes]}
        tail = told.pop("tail")
        return told | ({"tail": list(tail)} if tail else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MotionFit:
        """Read `to_dict`'s form. Raises KeyError, TypeError or ValueError for another."""
        weights = np.array(values["weights"], np.float64)
        tail = tuple(float(weight) for weight in values.get("tail", ()))
        if weights.shape != LAGS.shape or len(values["axes"]) != 3 or len(tail) not in (0, len(_TAIL)):
            raise ValueError("the answer of a hand's motion is of another form")
        axes = tuple((int(source), int(sign)) for source, sign in values["axes"])
        numbers = {name: float(values[name]) for name in ("r2", "gain", "axes_r2")}
        return cls(weights=weights, delay=int(values["delay"]), axes=axes, tail=tail, **numbers)

    @property
    def straight(self) -> bool:
        """Whether each action moves the axis that it is named after, in its direction."""
        return all(source == axis and sign == 1 for axis, (source, sign) in enumerate(self.axes))


def fit_motion(recorded: Recorded, spec: ActionSpec) -> MotionFit | None:
    """Fit the response. None if actions are not deltas of one 3-D position or proprio does not begin with its position,
    as far as that can be told: nothing explains the motion."""
    deltas = [(group, part) for group, part in spec.spans("position") if group.delta and len(group.names) == 3]
    if len(deltas) != 1 or len(spec.spans("position")) > 1 or not recorded or recorded[0][1].shape[1] < 3:
        return None
    ((group, part),) = deltas
    actions = [a[:, part] for a, _ in recorded]
    motions = [np.diff(p[:, :3], axis=0) for _, p in recorded]
    history = [_around(a) for a in actions]  # [T - 1, lags, 3] each
    x = np.concatenate([h[: len(m)] for h, m in zip(history, motions, strict=True)])
    y = np.concatenate(motions)
    usable = np.flatnonzero(np.isfinite(x).all(axis=(1, 2)))  # not so near to the ends that some actions are unknown
    usable = usable[:: max(1, len(usable) // _MOST_ROWS)]
    x, y = x[usable], y[usable]
    if len(y) * 3 < _FEWEST_ROWS or not np.isfinite(y).all():
        return None
    straight = tuple((axis, 1) for axis in range(3))
    weights, r2 = _fit(x, y, straight)
    axes, axes_r2 = straight, r2
    if r2 < 0.7:
        for places in itertools.permutations(range(3)):
            for signs in itertools.product((1, -1), repeat=3):
                candidate = tuple(zip(places, signs, strict=True))
                other, other_r2 = _fit(x, y, candidate)
                if other_r2 > axes_r2 + 0.05 and other.max() > -other.min():
                    weights, axes, axes_r2 = other, candidate, other_r2
    if axes_r2 < _SMALLEST_R2 or weights.max() <= 0:
        return None
    tail = np.zeros(0)
    if weights[-1] >= _STARTS * weights.max():  # what the last lag explains may be due to all actions before it
        before = np.concatenate([tail_of(a)[: len(m)] for a, m in zip(actions, motions, strict=True)])[usable]
        both, axes_r2 = _fit(np.concatenate([x, before], axis=1), y, axes)
        weights, tail = both[: len(LAGS)], both[len(LAGS) :]
        r2 = axes_r2 if axes == straight else r2
    start = int(np.flatnonzero(weights >= _STARTS * weights.max())[0])
    answer = weights[start:].sum() + tail.sum() if len(tail) else weights[start : start + _ANSWER].sum()
    return MotionFit(weights, r2, int(LAGS[start]), float(answer) / group.unit, axes, axes_r2, tuple(tail.tolist()))


def explained_by_pose(recorded: Recorded, position: slice) -> float:
    """The share of the actions' position that the hand's next position explains (R^2): near 1 if actions say where to
    go rather than how far. position: its dimensions."""
    a = np.concatenate([a[:-1, position] for a, _ in recorded])
    p = np.concatenate([p[1:, : a.shape[1]] for _, p in recorded])
    a, p = a - a.mean(0), p - p.mean(0)
    moving = (a.std(0) > _STILL_ACTION) & (p.std(0) > _STILL_M)
    if not moving.any():
        return 0.0
    r = (a * p).mean(0)[moving] / (a.std(0) * p.std(0))[moving]
    return float((r**2).min())


def _around(actions: np.ndarray) -> np.ndarray:
    """[T, lags, 3]: the actions around each frame; NaN where they lie outside the episode."""
    length = len(actions)
    place = np.arange(length)[:, None] - LAGS[None, :]
    around = actions[np.clip(place, 0, length - 1)].copy()
    around[(place < 0) | (place >= length)] = np.nan
    return around


def tail_of(actions: np.ndarray) -> np.ndarray:
    """[T, parts, n]: before each of actions [T, n], the means over the lags of an answer's tail; 0 before the first."""
    sums = np.concatenate([np.zeros((1, actions.shape[1])), actions.cumsum(0)])
    place = np.arange(len(actions))
    parts = [
        (sums[np.maximum(place - first + 1, 0)] - sums[np.maximum(place - last, 0)]) / (last - first + 1)
        for first, last in _TAIL
    ]
    return np.stack(parts, axis=1)


def _fit(x: np.ndarray, y: np.ndarray, axes: Sequence[tuple[int, int]]) -> tuple[np.ndarray, float]:
    """Weights [n] that explain y [N, 3] by x [N, n, 3], all axes together, and the adjusted R^2."""
    columns, targets = [], []
    for axis, (source, sign) in enumerate(axes):
        column, target = sign * x[:, :, source], y[:, axis]
        if column.std() > _STILL_ACTION and target.std() > _STILL_M:
            columns.append(column - column.mean(0))
            targets.append(target - target.mean())
    if not columns:
        return np.zeros(x.shape[1]), 0.0
    a, b = np.concatenate(columns), np.concatenate(targets)
    scale = float((a**2).mean())
    weights = np.linalg.solve(a.T @ a + _RIDGE * scale * len(a) * np.eye(x.shape[1]), a.T @ b)
    left = b - a @ weights
    r2 = 1 - float((left**2).sum() / (b**2).sum())
    return weights, 1 - (1 - r2) * (len(b) - 1) / max(1, len(b) - x.shape[1] - 1)
