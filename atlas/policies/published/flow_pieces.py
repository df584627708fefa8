"""Flow matching as in SmolVLA, pi0 and pi0.5, where time 1 is noise and time 0 the action.

    x_t = t noise + (1 - t) action          target velocity: noise - action

(Black et al., 2024, "pi0"; time runs as in the code of openpi and LeRobot, opposite to the paper.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from atlas.data.sampling.randomness import Stream, normal, uniform
from atlas.errors import InputError
from atlas.policies.chunk_guidance import Guidance

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x_t [B, H, W], time [B] -> [B, H, W]


@dataclass(frozen=True)
class FlowTime:
    """The distribution of training times: Beta(alpha, 1) times scale plus offset. A uniform number to the power 1/alpha
    has this Beta distribution."""

    alpha: float = 1.5
    scale: float = 0.999
    offset: float = 0.001

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        """Times float32 [B] from uniform numbers [B] in [0, 1)."""
        return (u.double() ** (1 / self.alpha) * self.scale + self.offset).float()


def check_beta(alpha: float, beta: float, where: str) -> float:
    """Return alpha. Raises InputError for a distribution that Atlas cannot draw from."""
    if beta != 1.0 or alpha <= 0:
        raise InputError(f"{where}: training times follow Beta({alpha:g}, {beta:g}); Atlas only has Beta(a, 1).")
    return alpha


def draw_training(
    shape: tuple[int, int, int], key: torch.Tensor | None, device: torch.device, time: FlowTime, draws: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise float32 [B * draws, H, W] and times float32 [B * draws], those of one sample of shape [B, H, W] after each
    other; from the samples' keys int64 [B], or from torch's generator where there are none."""
    samples, *size = shape
    if key is None:
        return torch.randn(samples * draws, *size, device=device), time(torch.rand(samples * draws, device=device))
    noise = normal(key, Stream.FLOW_NOISE, draws * size[0] * size[1]).view(samples * draws, *size).float()
    return noise, time(uniform(key, Stream.FLOW_TIME, draws).flatten())


def draw_start(
    shape: tuple[int, int, int], key: torch.Tensor | None, generator: torch.Generator | None, device: torch.device
) -> torch.Tensor:
    """The noise float32 [B, H, W] at which sampling starts: from `generator`, else the keys, else torch's generator."""
    if generator is not None:
        return torch.randn(shape, generator=generator, device=generator.device).to(device)
    if key is not None:
        return normal(key, Stream.FLOW_SAMPLING, shape[1] * shape[2]).view(shape).float()
    return torch.randn(shape, device=device)


def mix(actions: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t and the target velocity, both [B, H, W], from normalised actions and noise [B, H, W] and time [B]."""
    t = time[:, None, None]
    return t * noise + (1 - t) * actions, noise - actions


def time_embedding(time: torch.Tensor, width: int, shortest: float, longest: float) -> torch.Tensor:
    """float64 [B, width] from time [B]: sines, then cosines, of 2 pi t / period, with geometrically spaced periods.

    In float64, because 2 pi t / 0.004 is large: float32 has errors of 6e-5 in the waves and 1e-4 in velocities.
    """
    periods = shortest * (longest / shortest) ** torch.linspace(
        0.0, 1.0, width // 2, dtype=torch.float64, device=time.device
    )
    angles = 2 * math.pi * time.double()[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def look_ahead_mask(valid: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
    """bool [B, N, N]: whether a query (row) may attend to a key, from valid bool [B, N] and block flags int or bool
    [N] or [B, N].

    A flag of 1 begins a new block. A token attends to its own block and the blocks before it, where both are valid.
    """
    block = flags.long().cumsum(-1)  # [N], or [B, N]
    allowed = block[..., None, :] <= block[..., :, None]
    return allowed & valid[:, None, :] & valid[:, :, None]


def positions_of(valid: torch.Tensor) -> torch.Tensor:
    """int64 [B, N]: the running count of valid tokens minus 1; padded tokens repeat a position."""
    return valid.long().cumsum(-1) - 1


@torch.no_grad()
def integrate_euler(velocity: Velocity, start: torch.Tensor, steps: int, guide: Guidance | None = None) -> torch.Tensor:
    """Go from noise at time 1 to actions at time 0 in equal steps. Each time 1 - i/steps is rounded only once."""
    x = start
    for step in range(steps):
        time = torch.full((len(x),), 1.0 - step / steps, dtype=torch.float32, device=x.device)
        v = velocity(x, time)
        if guide is not None:
            v = guide(x, v, 1.0 - step / steps)
        x = x - v / steps
    return x
