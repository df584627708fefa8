"""Real-time chunking: guides a flow's chunk towards the rest of the previous chunk, while that is executed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from atlas.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """Draws a chunk towards the rest of the previous one (real-time chunking).

    Black, Galliker and Levine, 2025, with the identity for the gradient through the network, as in LeRobot.
    previous: float32 [B, H, W], normalised, zeros past its end. weights: float32 [H].
    """

    previous: torch.Tensor
    weights: torch.Tensor
    most: float = 10.0

    @classmethod
    def towards(
        cls,
        rest: torch.Tensor,
        horizon: int,
        width: int,
        delay: int,
        reach: int | None = None,
        schedule: str = "linear",
        most: float = 10.0,
    ) -> Guidance:
        """Guidance of a new chunk [B, horizon, width] towards the rest of one, float32 [B, R, <= width], normalised.

        delay, reach (None: all of the rest), schedule: see `guidance_weights`.
        """
        left = rest.shape[1]
        weights = guidance_weights(horizon, left, delay, left if reach is None else reach, schedule).to(rest.device)
        padded = F.pad(rest[:, :horizon], (0, width - rest.shape[2], 0, max(0, horizon - left)))
        return cls(padded, weights, most)

    def __call__(self, x: torch.Tensor, velocity: torch.Tensor, time: float) -> torch.Tensor:
        """The guided velocity at x [B, H, W] and time, which goes from 1 (noise) to 0 (actions), as velocity does."""
        done = 1.0 - time
        strength = self.most
        if done > 0:
            rest = 1.0 - done
            spread = (rest**2 + done**2) / rest**2 if rest > 0 else math.inf
            strength = min(self.most, rest / done * spread) if rest > 0 else self.most
        error = self.previous - (x - time * velocity)
        return velocity - strength * self.weights[:, None] * error


def guidance_weights(horizon: int, left: int, delay: int, reach: int, schedule: str = "linear") -> torch.Tensor:
    """float32 [horizon]: 1 for the first `delay` actions, which will be executed before the new chunk is there, then
    falling to 0 at `reach`, which is at most `left`, the number of actions left of the previous chunk.

    schedule: linear; exp (falls faster); ones (1 up to `reach`); zeros (0 from `delay` on). Raises InputError.
    """
    if schedule not in ("linear", "exp", "ones", "zeros"):
        raise InputError(f"real-time chunking's schedule is '{schedule}'; known: linear, exp, ones, zeros.")
    end = min(reach, left, horizon)
    start = min(delay, end)
    weights = torch.zeros(horizon)
    if schedule == "zeros":
        weights[:start] = 1.0
    elif schedule == "ones":
        weights[:end] = 1.0
    else:
        falling = torch.linspace(1.0, 0.0, end - start + 2)[1:-1]
        if schedule == "exp":
            falling = falling * torch.expm1(falling) / (math.e - 1)
        weights[:start], weights[start:end] = 1.0, falling
    return weights
