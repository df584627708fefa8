"""Solvers for differential equations from time 0 to 1, with steps of equal length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

Solver = Literal["euler", "midpoint", "rk4"]
Velocity = Callable[[torch.Tensor, float], torch.Tensor]  # at x and a time, in x's shape


def integrate(velocity: Velocity, x: torch.Tensor, solver: Solver, steps: int) -> torch.Tensor:
    """Carry x from time 0 to time 1; a step evaluates the velocity 1, 2 (midpoint) or 4 times (rk4)."""
    step, dt = _STEPS[solver], 1 / steps
    for number in range(steps):
        x = x + dt * step(velocity, x, number * dt, dt)
    return x


def _euler(velocity: Velocity, x: torch.Tensor, time: float, dt: float) -> torch.Tensor:
    """The mean velocity from `time` to `time + dt`, as the method estimates it; the same for the other solvers."""
    return velocity(x, time)


def _midpoint(velocity: Velocity, x: torch.Tensor, time: float, dt: float) -> torch.Tensor:
    return velocity(x + dt / 2 * velocity(x, time), time + dt / 2)


def _rk4(velocity: Velocity, x: torch.Tensor, time: float, dt: float) -> torch.Tensor:
    """The classical Runge-Kutta method (Kutta, 1901)."""
    first = velocity(x, time)
    second = velocity(x + dt / 2 * first, time + dt / 2)
    third = velocity(x + dt / 2 * second, time + dt / 2)
    fourth = velocity(x + dt * third, time + dt)
    return (first + 2 * second + 2 * third + fourth) / 6


_STEPS = {"euler": _euler, "midpoint": _midpoint, "rk4": _rk4}
