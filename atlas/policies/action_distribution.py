"""Random actions with their probability, which learning by reward needs from a policy.

Actions here are scaled, as the network outputs them, with grippers from -1 (open) to 1 (closed).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Where random numbers come from: one generator for a batch (None: torch's own), or one for each of its rows, which then
# gets the numbers that it would get alone.
Random = torch.Generator | Sequence[torch.Generator] | None


def _by_row(random: Random, rows: int, draw: Callable[[int, torch.Generator | None], torch.Tensor]) -> torch.Tensor:
    """Numbers for a batch, from a function that draws them for n rows."""
    if random is None or isinstance(random, torch.Generator):
        return draw(rows, random)
    return torch.cat([draw(1, each) for each in random])


class ActionDistribution(Protocol):
    """A distribution of chunks [B, H, A]."""

    @property
    def most_likely(self) -> torch.Tensor:
        """[B, H, A]."""
        ...

    def sample(self, random: Random = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions [B, H, A], and the logarithm of their density [B]."""
        ...

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """The logarithm of the density [B] of a chunk [B, H, A], with gradients."""
        ...

    @property
    def entropy(self) -> torch.Tensor:
        """[B]."""
        ...

    def first(self, count: int) -> ActionDistribution:
        """The distribution of the first `count` actions of each chunk, where the rest is not executed."""
        ...


@dataclass(frozen=True)
class GaussianActions:
    """Independent Gaussians over the numbers of a chunk; if squashed, their hyperbolic tangents, in (-1, 1)."""

    mean: torch.Tensor  # float [B, H, A], before squashing
    log_std: torch.Tensor  # float [B, H, A]
    squashed: bool

    @property
    def most_likely(self) -> torch.Tensor:
        """[B, H, A]; the median, if squashed."""
        return torch.tanh(self.mean) if self.squashed else self.mean

    def sample(self, random: Random = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions [B, H, A] that gradients flow through (reparametrised), and the logarithm of their density [B]."""
        noise = _by_row(random, len(self.mean), lambda n, g: torch.empty_like(self.mean[:n]).normal_(generator=g))
        raw = self.mean + self.log_std.exp() * noise
        log_prob = -0.5 * noise.square() - self.log_std - _HALF_LOG_2PI
        return self._bounded(raw, log_prob)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """The logarithm of the density [B] of a chunk [B, H, A]: the sum over its numbers."""
        # The inverse of an action at the edge, such as a clipped one, would be infinite.
        raw = torch.atanh(actions.clamp(-1 + 1e-6, 1 - 1e-6)) if self.squashed else actions
        noise = (raw - self.mean) * (-self.log_std).exp()
        return self._bounded(raw, -0.5 * noise.square() - self.log_std - _HALF_LOG_2PI)[1]

    @property
    def entropy(self) -> torch.Tensor:
        """[B], of the Gaussians before squashing."""
        return (0.5 + _HALF_LOG_2PI + self.log_std).flatten(1).sum(1)

    def first(self, count: int) -> GaussianActions:
        """See `ActionDistribution.first`."""
        return GaussianActions(self.mean[:, :count], self.log_std[:, :count], self.squashed)

    def _bounded(self, raw: torch.Tensor, log_prob: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.squashed:
            return raw, log_prob.flatten(1).sum(1)
        # log(1 - tanh(x)^2) in a form that keeps its digits far from 0 (Haarnoja et al., 2018, appendix C)
        log_prob = log_prob - 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return torch.tanh(raw), log_prob.flatten(1).sum(1)


@dataclass(frozen=True)
class Noise:
    """The noise added to the pose of a policy that itself gives a single action."""

    deviation: float  # standard deviation of each scaled number
    shared: float  # the share of the variance, 0 to below 1, that comes from one draw for all actions of a chunk
    flow: float = 0.5  # for a policy that grows its chunk from noise: the size of the noise at one of its steps


@dataclass(frozen=True)
class NoisyActions:
    """A pose with Gaussian noise around the policy's, and binary grippers by their probability of closing.

    Noise drawn independently for each action largely averages out in the hand's motion, so a share of its variance is
    common to all actions of a chunk. The density of the H actions then has a closed form: the variance along their mean
    is deviation² (1 - shared + shared H), and across it deviation² (1 - shared).
    """

    pose: torch.Tensor  # float [B, H, P]
    gripper: torch.Tensor  # float [B, H, G], logits of closing
    pose_at: torch.Tensor  # int64 [P], the indices of the pose's numbers in an action
    gripper_at: torch.Tensor  # int64 [G]
    noise: Noise

    @property
    def most_likely(self) -> torch.Tensor:
        return self._joined(self.pose, (self.gripper > 0).float())

    def sample(self, random: Random = None) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ActionDistribution.sample`; no gradients flow through the grippers."""

        def normal(like: torch.Tensor) -> torch.Tensor:
            shape, device = like.shape[1:], like.device
            return _by_row(random, len(like), lambda n, g: torch.empty(n, *shape, device=device).normal_(generator=g))

        own, common = (1 - self.noise.shared) ** 0.5, self.noise.shared**0.5
        drawn = own * normal(self.pose) + common * normal(self.pose[:, :1])
        chance = _by_row(
            random, len(self.gripper), lambda n, g: torch.empty_like(self.gripper[:n]).uniform_(generator=g)
        )
        closed = (chance < torch.sigmoid(self.gripper)).float()
        actions = self._joined(self.pose + self.noise.deviation * drawn, closed)
        return actions, self.log_prob(actions)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """See `ActionDistribution.log_prob`."""
        off = (actions[..., self.pose_at] - self.pose) / self.noise.deviation  # [B, H, P]
        along, across = self._variances
        mean = off.mean(1, keepdim=True)
        squares = (off - mean).square().sum(1) / across + off.shape[1] * mean[:, 0].square() / along  # [B, P]
        found = -0.5 * squares.sum(1) - off.shape[2] * self._log_volume
        closed = (actions[..., self.gripper_at] > 0).float()
        return found - F.binary_cross_entropy_with_logits(self.gripper, closed, reduction="none").flatten(1).sum(1)

    @property
    def entropy(self) -> torch.Tensor:
        """[B], of the noise, which is the same for all samples, and of the grippers."""
        chance = torch.sigmoid(self.gripper)
        grippers = F.binary_cross_entropy_with_logits(self.gripper, chance, reduction="none").flatten(1).sum(1)
        length, numbers = self.pose.shape[1:]
        return grippers + numbers * (0.5 * length + self._log_volume)

    def first(self, count: int) -> NoisyActions:
        """See `ActionDistribution.first`."""
        return NoisyActions(self.pose[:, :count], self.gripper[:, :count], self.pose_at, self.gripper_at, self.noise)

    @property
    def _variances(self) -> tuple[float, float]:
        """The variances along the mean of a number's H values and across it, for a deviation of 1."""
        shared = self.noise.shared
        return 1 - shared + shared * self.pose.shape[1], 1 - shared

    @property
    def _log_volume(self) -> float:
        """The logarithm of the normalising constant of the density of a number's H values."""
        length, (along, across) = self.pose.shape[1], self._variances
        spread = length * math.log(self.noise.deviation) + 0.5 * (math.log(along) + (length - 1) * math.log(across))
        return spread + length * _HALF_LOG_2PI

    def _joined(self, pose: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        actions = pose.new_zeros(*pose.shape[:2], pose.shape[2] + closed.shape[2])
        actions[..., self.pose_at] = pose
        actions[..., self.gripper_at] = 2 * closed - 1
        return actions


@dataclass(frozen=True)
class CorrectedActions:
    """A policy's chunk, and one random correction for all its actions."""

    base: torch.Tensor  # float [B, H, A]
    correction: GaussianActions  # of [B, 1, A], squashed: from -1 to 1
    scale: float  # the size of a correction of 1

    def sample(self, random: Random = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions [B, H, A] that gradients flow through, and the logarithm of the density [B] of their correction."""
        drawn, log_prob = self.correction.sample(random)
        return self.base + self.scale * drawn, log_prob

    @property
    def most_likely(self) -> torch.Tensor:
        """[B, H, A]."""
        return self.base + self.scale * self.correction.most_likely

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """The logarithm of the density [B] of the correction of chunks [B, H, A] that `sample` may give."""
        return self.correction.log_prob((actions - self.base).mean(1, keepdim=True) / self.scale)


@dataclass(frozen=True)
class FlowActions:
    """Chunks that are grown from noise by following a velocity, one step of which is random: so each has a density.

    The ordinary differential equation that carries noise (time 1) to actions (time 0) has a stochastic one beside it
    with the same distributions at all times (Flow-GRPO, Liu et al., 2025). At a step that is drawn for each chunk that
    one is followed, elsewhere the ordinary one, as in pi-RL (Chen et al., 2025): what is learned from is this step.

    A chunk is kept with it, as a path float [B, H, 2 W + A + 1]: x before the step, x after it, the scaled actions that
    came of that, and the step's number. As in pi-RL its density is that of the executed actions' own numbers.
    """

    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # at x [B, H, W] and time [B], towards noise
    finish: Callable[[torch.Tensor], torch.Tensor]  # x at time 0 to scaled actions [B, H, A]
    shape: tuple[int, int, int]  # B, H, W
    device: torch.device
    real: int  # of the W numbers, from the first on; the others only pad
    steps: int
    noise: float
    counted: int  # actions, from the first on

    def sample(self, random: Random = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A path, and the logarithm of its density [B]."""

        def drawn(draw: Callable[[int, torch.Generator | None, torch.device], torch.Tensor]) -> torch.Tensor:
            def draw_rows(n: int, g: torch.Generator | None) -> torch.Tensor:
                return draw(n, g, self.device if g is None else g.device)

            return _by_row(random, self.shape[0], draw_rows).to(self.device)

        shape = self.shape[1:]
        step = drawn(lambda n, g, where: torch.randint(self.steps, (n,), generator=g, device=where))
        start, noise = (drawn(lambda n, g, where: torch.randn(n, *shape, generator=g, device=where)) for _ in range(2))
        return self._grow(start, step, noise)

    @property
    def most_likely(self) -> torch.Tensor:
        """A path whose random step is the middle of what it may be, from the same noise every time."""
        start = torch.randn(self.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        step = torch.zeros(self.shape[0], dtype=torch.int64, device=self.device)
        return self._grow(start, step, torch.zeros_like(start))[0]

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """The logarithm of the density [B] of paths, with gradients."""
        width = self.shape[2]
        before, after, step = actions[..., :width], actions[..., width : 2 * width], actions[:, 0, -1].round().long()
        middle, deviation = self._moments(before, step)
        return self._density(after, middle, deviation)

    @property
    def entropy(self) -> torch.Tensor:
        """[B], the mean over the steps, which is the same for all."""
        step = torch.arange(self.steps, device=self.device)
        logs = self._deviation(step).log().mean() + 0.5 + _HALF_LOG_2PI
        return (self.counted * self.real * logs).expand(self.shape[0])

    def first(self, count: int) -> FlowActions:
        """See `ActionDistribution.first`: a path has all of the chunk."""
        return replace(self, counted=count)

    def executed(self, path: torch.Tensor) -> torch.Tensor:
        """The scaled actions [..., counted, A] of paths."""
        return path[..., : self.counted, 2 * self.shape[2] : -1]

    def _grow(self, start: torch.Tensor, step: torch.Tensor, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, before, after = start, start, start
        middle, deviation = start, torch.ones_like(start[:, 0, 0])
        for number in range(self.steps):
            here = (step == number)[:, None, None]
            at = torch.full_like(step, number)
            v = self.velocity(x, self._time(at))
            to, size = self._moments(x, at, v)
            then = torch.where(here, to + size[:, None, None] * drawn, x - v / self.steps)
            before, after = torch.where(here, x, before), torch.where(here, then, after)
            middle, deviation = torch.where(here, to, middle), torch.where(step == number, size, deviation)
            x = then
        drawn_at = step.to(x.dtype)[:, None, None].expand(-1, x.shape[1], 1)
        path = torch.cat([before, after, self.finish(x), drawn_at], -1)
        return path, self._density(after, middle, deviation)

    def _time(self, step: torch.Tensor) -> torch.Tensor:
        return 1 - step.float() / self.steps

    def _deviation(self, step: torch.Tensor) -> torch.Tensor:
        """The deviation [B] of a step's noise; at the first, where it would be infinite, it is as far from 1 as at the
        next."""
        time = self._time(step)
        capped = time.clamp(max=1 - 1 / self.steps)
        return self.noise * (time / (1 - capped) / self.steps).sqrt()

    def _moments(
        self, x: torch.Tensor, step: torch.Tensor, v: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean [B, H, W] of a random step, and its deviation [B]."""
        time, size = self._time(step), self._deviation(step)
        v = self.velocity(x, time) if v is None else v
        at, share = time[:, None, None], (size.square() / (2 * time))[:, None, None]
        noise = x + (1 - at) * v  # that the velocity comes from
        return x - v / self.steps - share * noise, size

    def _density(self, after: torch.Tensor, middle: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        own = (slice(None), slice(self.counted), slice(self.real))
        off = (after[own] - middle[own]) / deviation[:, None, None]
        each = -0.5 * off.square() - deviation.log()[:, None, None] - _HALF_LOG_2PI
        return each.flatten(1).sum(1)
