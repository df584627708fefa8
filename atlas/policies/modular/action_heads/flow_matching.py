"""The flow-matching head: a small diffusion transformer that moves noise to a chunk of actions along straight lines."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from atlas.data.sampling.randomness import Stream, normal, uniform
from atlas.policies.action_distribution import FlowActions
from atlas.policies.chunk_guidance import Guidance
from atlas.policies.modular.action_heads.action_parts import ActionParts
from atlas.policies.modular.action_heads.head_contract import ActionHead
from atlas.policies.modular.action_heads.solvers import integrate
from atlas.policies.modular.parts import FlowMatchingHeadConfig
from atlas.policies.modular.unused_biases import hold_key_bias
from atlas.types import ActionSpec, LossTerms

_LAST_TIME = 0.999  # in training; the rest is shorter than any step of a solver
_TIME_FEATURES = 64
_TIME_PERIODS = (4e-3, 4.0)  # shortest and longest of the features' waves, in units of the flow's time


class FlowMatchingHead(ActionHead):
    """Learns the velocity that carries noise (time 0) to actions (time 1); owns the loss.

    Flow matching with straight paths (Lipman et al., 2023; Liu et al., 2023): x_t = (1 - t) noise + t actions, whose
    velocity is actions - noise. Each step of the chunk is a token made of its noisy action and its fused token, and is
    conditioned on the time and again on its fused token. Actions here are normalised, grippers are in ±1.
    """

    def __init__(self, config: FlowMatchingHeadConfig, dim: int, spec: ActionSpec, horizon: int) -> None:
        super().__init__()
        self._config, self._pose_dim, self._has_grippers = config, len(spec.pose), bool(spec.grippers)
        self.parts = ActionParts(spec)
        numbers = spec.dim  # generated per action: the pose, then the grippers
        self.token = nn.Sequential(nn.Linear(numbers + dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))
        self.position = nn.Parameter(torch.randn(horizon, config.dim) * 0.02)
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))
        self.context = nn.Linear(dim, config.dim)
        self.blocks = nn.ModuleList(
            _Block(config.dim, config.heads, round(config.mlp_ratio * config.dim)) for _ in range(config.layers)
        )
        self.modulation = _Modulation(config.dim, 2)
        self.velocity = nn.Linear(config.dim, numbers)
        nn.init.zeros_(self.velocity.weight)
        nn.init.zeros_(self.velocity.bias)

    def forward(
        self, fused: torch.Tensor, actions: torch.Tensor, is_pad: torch.Tensor, key: torch.Tensor | None = None
    ) -> LossTerms:
        """Mean squared errors of the velocity over the valid steps.

        fused [B, H, dim], actions [B, H, A], is_pad bool [B, H]. A sample's noise and time follow from its `key`
        (int64 [B]), so that they are the same on one process and on eight, and after a resume; without keys they come
        from torch's generator.
        """
        target = self._pack(actions)  # [B, H, D]
        noise, time = self._draw(target, key)
        reached = torch.lerp(noise, target, time[:, None, None])
        errors = (self._velocity(reached, time, fused, is_pad) - (target - noise)).square()
        grippers = errors[..., self._pose_dim :] if self._has_grippers else None
        return self.parts.losses(errors[..., : self._pose_dim], grippers, is_pad, self._config)

    def sample(
        self, fused: torch.Tensor, key: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Normalised actions float32 [B, H, A], grippers in [-1, 1]; fused [B, H, dim].

        The initial noise is drawn from `generator` if there is one, otherwise it follows from `key` (int64 [B]),
        otherwise it comes from torch's generator. With a key, the actions do not depend on the rest of the batch.
        """
        return self.carry(self._start(fused, key, generator), fused)

    def sample_following(
        self, fused: torch.Tensor, rest: torch.Tensor, delay: int, key: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `sample`, drawn to the rest of the chunk before, normalised actions [B, R, A], of which `delay` will be
        executed before this one is there."""
        guide = Guidance.towards(self._pack(rest), fused.shape[1], self.noise_dim, delay)
        return self.carry(self._start(fused, key, None), fused, guide)

    def _start(self, fused: torch.Tensor, key: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
        """Noise [B, H, D]."""
        shape = (*fused.shape[:2], self.noise_dim)
        if generator is not None:
            return torch.randn(shape, generator=generator, device=generator.device).to(fused.device)
        if key is not None:
            return normal(key, Stream.FLOW_SAMPLING, shape[1] * shape[2]).view(shape).float()
        return torch.randn(shape, device=fused.device)

    @property
    def noise_dim(self) -> int:
        return self.velocity.out_features

    def carry(self, noise: torch.Tensor, fused: torch.Tensor, guide: Guidance | None = None) -> torch.Tensor:
        """See `GenerativeHead`."""

        def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
            free = self._velocity(x, torch.full((len(fused),), time, device=x.device), fused)
            return free if guide is None else -guide(x, -free, 1 - time)  # its time goes the other way

        return self._unpack(integrate(velocity, noise, self._config.solver, self._config.steps))

    def distribution(self, fused: torch.Tensor, noise: float) -> FlowActions:
        """The distribution of normalised actions, by Euler's steps whatever the solver; fused [B, H, dim]."""

        def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return -self._velocity(x, 1 - time, fused)  # its time goes the other way

        shape = (*fused.shape[:2], self.noise_dim)
        return FlowActions(
            velocity, self._unpack, shape, fused.device, self.noise_dim, self._config.steps, noise, fused.shape[1]
        )

    def _draw(self, target: torch.Tensor, key: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise like `target` [B, H, D] and a time [B]."""
        if key is None:
            return torch.randn_like(target), training_time(torch.rand(len(target), device=target.device))
        noise = normal(key, Stream.FLOW_NOISE, target[0].numel()).view_as(target).float()
        return noise, training_time(uniform(key, Stream.FLOW_TIME, 1)[:, 0].float())

    def _velocity(
        self, x: torch.Tensor, time: torch.Tensor, fused: torch.Tensor, is_pad: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The network's estimate of the velocity, float32 [B, H, D], at x [B, H, D] and time [B]."""
        condition = F.silu(self.time(_waves(time))[:, None] + self.context(fused))  # [B, H, C]: one per step
        mask = None if is_pad is None else _attendable(is_pad)
        h = self.token(torch.cat([x, fused], dim=-1)) + self.position
        for block in self.blocks:
            h = block(h, condition, mask)
        shift, scale = self.modulation(condition)
        velocity: torch.Tensor = self.velocity(_modulate(h, shift, scale)).float()
        return velocity

    def _pack(self, actions: torch.Tensor) -> torch.Tensor:
        """[B, H, A] to [B, H, A]: the pose, then the grippers."""
        return torch.cat(self.parts.split(actions), dim=-1).float()

    def _unpack(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts.join(x[..., : self._pose_dim], x[..., self._pose_dim :].clamp(-1, 1))


def training_time(u: torch.Tensor) -> torch.Tensor:
    """The flow's time in training, in [0, 0.999], from uniform numbers in [0, 1].

    1 - t/0.999 is from Beta(1.5, 1): most samples are noisy ones, where the network decides what to do, and the density
    falls to zero at the end, where hardly anything is left to do (pi0; Black et al., 2024). The distribution function
    is x^1.5, which is inverted.
    """
    return _LAST_TIME * (1 - u ** (1 / 1.5))


class _Modulation(nn.Module):
    """Turns the condition into `count` vectors for each step, all zero at first (adaLN-zero; Peebles and Xie, 2023)."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self._count = count
        self.linear = nn.Linear(dim, count * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, H, C] to `count` times [B, H, C]."""
        return self.linear(condition).chunk(self._count, dim=-1)


class _Block(nn.Module):
    """Self-attention over the steps of a chunk and an MLP, both modulated and gated; the identity at first."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self._heads = heads
        self.modulation = _Modulation(dim, 6)
        self.qkv = nn.Linear(dim, 3 * dim)
        hold_key_bias(self.qkv.bias)
        self.proj = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, h: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """h, condition [B, H, C] to [B, H, C]; mask bool [B, 1, H, H], true where a step may attend to another."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)
        qkv = self.qkv(_modulate(h, shift, scale))
        q, k, v = qkv.unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, H, C / heads]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        h = h + gate * self.proj(attended)
        out: torch.Tensor = h + mlp_gate * self.mlp(_modulate(h, mlp_shift, mlp_scale))
        return out


def _modulate(h: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift


def _attendable(is_pad: torch.Tensor) -> torch.Tensor:
    """Return the steps that each step may attend to, bool [B, 1, H, H]: the valid ones, and itself.

    A padded step holds a copy of the episode's last action under its own noise. Together, such copies would reveal the
    answer to the other steps, which nothing does when actions are sampled.
    """
    own = torch.eye(is_pad.shape[1], dtype=torch.bool, device=is_pad.device)
    return (~is_pad[:, None, :] | own)[:, None]


def _waves(time: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of time [B] with geometrically spaced periods (as in pi0), float32 [B, _TIME_FEATURES]."""
    shortest, longest = _TIME_PERIODS
    place = torch.linspace(0, 1, _TIME_FEATURES // 2, device=time.device)
    angles = time[:, None] * 2 * math.pi / (shortest * (longest / shortest) ** place)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
