"""Soft actor-critic (Haarnoja et al., 2018): the policy maximises its return and its entropy.

It includes the parts that made SAC sample-efficient: an ensemble of critics with LayerNorm and the minimum over a
random subset, several updates per step, and half of each batch from demonstrations (REDQ, Chen et al., 2021; RLPD, Ball
et al., 2023). `update` is the whole algorithm; acting, in one process or in several, is implemented elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from atlas.config import SacBaseConfig
from atlas.learning.experience_replay import DecisionBatch
from atlas.policies.action_distribution import Random
from atlas.training.optimizer import trained_parameters

Observations = Mapping[str, torch.Tensor]  # a batch of observations, [B, ...] each


class Drawable(Protocol):
    def sample(self, random: Random = None) -> tuple[torch.Tensor, torch.Tensor]: ...


class Acts(Protocol):
    """The trained part: it maps observations to a distribution of scaled actions, in [-1, 1]."""

    @property
    def action_dim(self) -> int: ...

    @property
    def state_dim(self) -> int:
        """The width of the critics' state."""
        ...

    @property
    def random_dim(self) -> int:
        """How many of an action's numbers are random."""
        ...

    def trained(self) -> nn.Module: ...

    def distribution(self, observations: Observations) -> Drawable:
        """The distribution; gradients flow through its samples."""
        ...

    def penalty(self, observations: Observations, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A penalty on the actions, added to the actor's loss, and their mean size; None: there is none."""
        ...

    def executed(self, actions: torch.Tensor) -> torch.Tensor:
        """Scaled actions [B, A] as the world executes them. Critics see no others: beyond the world's bounds, larger
        actions have the same value."""
        ...

    def state(self, observations: Observations) -> torch.Tensor:
        """The critics' state, float32 [B, state_dim], without gradients."""
        ...


class Critics(nn.Module):
    """An ensemble of N networks, each of which estimates the value of an action."""

    def __init__(self, count: int, state_dim: int, action_dim: int, width: int, layers: int, layer_norm: bool) -> None:
        super().__init__()
        self._layer_norm = layer_norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.scales, self.shifts = nn.ParameterList(), nn.ParameterList()
        sizes = [state_dim + action_dim, *[width] * layers, 1]
        for before, after in pairwise(sizes):
            bound = 1 / math.sqrt(before)  # as torch initialises a linear layer
            self.weights.append(nn.Parameter(torch.empty(count, before, after).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(count, 1, after).uniform_(-bound, bound)))
        for _ in range(layers if layer_norm else 0):
            self.scales.append(nn.Parameter(torch.ones(count, 1, width)))
            self.shifts.append(nn.Parameter(torch.zeros(count, 1, width)))

    def forward(self, state: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """state [B, S], actions [B, A] to values [N, B]."""
        x = torch.cat([state, actions], 1).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if place < last:
                if self._layer_norm:
                    x = F.layer_norm(x, x.shape[-1:]) * self.scales[place] + self.shifts[place]
                x = F.relu_(x)
        return x.squeeze(-1)


class SoftActorCritic:
    """The learner: the actor, its critics, the temperature, and an optimizer for each."""

    def __init__(self, settings: SacBaseConfig, actor: Acts, seed: int, device: torch.device) -> None:
        self.settings, self.actor, self.device = settings, actor, device
        self.random = torch.Generator(device).manual_seed(seed)
        torch.manual_seed(seed)  # for the critics' initial weights
        sizes = (settings.critics, actor.state_dim, actor.action_dim, settings.width, settings.layers)
        self.critics = Critics(*sizes, settings.layer_norm).to(device)
        self.targets = Critics(*sizes, settings.layer_norm).to(device).requires_grad_(False)
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_temperature = torch.tensor(math.log(settings.temperature), device=device, requires_grad=True)
        self.target_entropy = -actor.random_dim if settings.target_entropy is None else settings.target_entropy
        self._weights: dict[str, list[torch.Tensor]] = {
            "actor": [weight for _, weight in trained_parameters(actor.trained())],
            "critics": list(self.critics.parameters()),
            "temperature": [self.log_temperature],
        }
        self._target_weights = list[torch.Tensor](self.targets.parameters())
        self.optimizers = {
            "actor": torch.optim.Adam(self._weights["actor"], settings.learning_rate, fused=True),
            "critics": torch.optim.Adam(self._weights["critics"], settings.critic_learning_rate, fused=True),
            "temperature": torch.optim.Adam([self.log_temperature], settings.learning_rate),
        }
        self.updates, self.skipped = 0, 0

    @property
    def temperature(self) -> torch.Tensor:
        return self.log_temperature.detach().exp()

    def update(self, batch: DecisionBatch) -> dict[str, torch.Tensor]:
        """Make a step of the critics, and every `critic_actor_ratio` times one of the actor; return the metrics, {} if
        the step was skipped because something was not finite."""
        self.updates += 1
        metrics = self._update_critics(batch)
        warm = self.updates > self.settings.critic_warmup
        if metrics and warm and self.updates % self.settings.critic_actor_ratio == 0:
            metrics |= self._update_actor(batch.observations)
        return metrics

    @torch.no_grad()
    def target_values(self, batch: DecisionBatch, random: torch.Generator) -> torch.Tensor:
        """The targets [B] for the values of decisions: their returns plus the soft values of the next states."""
        next_actions, log_prob = self.actor.distribution(batch.next_observations).sample(random)
        values = self.targets(
            self.actor.state(batch.next_observations), self.actor.executed(next_actions.flatten(1))
        )  # [N, B]
        if self.settings.critic_subset < len(values):
            order = torch.randperm(len(values), generator=random, device=self.device)
            values = values[order[: self.settings.critic_subset]]
        return batch.returns + batch.discounts * (values.min(0).values - self.temperature * log_prob)

    @torch.no_grad()
    def values_and_targets(self, decisions: DecisionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The critics' mean values of T decisions, and their targets: float32 [T] each."""
        random = torch.Generator(self.device).manual_seed(0)
        batch = decisions.to(self.device)
        values = self.critics(self.actor.state(batch.observations), batch.actions)
        return values.mean(0).cpu(), self.target_values(batch, random).cpu()

    def _update_critics(self, batch: DecisionBatch) -> dict[str, torch.Tensor]:
        targets = self.target_values(batch, self.random)
        values = self.critics(self.actor.state(batch.observations), batch.actions)
        squares = F.mse_loss(values, targets.expand_as(values), reduction="none")
        loss = (squares if batch.weights is None else squares * batch.weights).mean(1).sum()
        if not self._step("critics", loss):
            return {}
        with torch.no_grad():
            torch._foreach_lerp_(self._target_weights, self._weights["critics"], self.settings.tau)
        metrics = {"sac/critic_loss": loss.detach(), "values": values.detach(), "targets": targets}
        return metrics if batch.rows is None else {**metrics, "errors": squares.detach().mean(0).sqrt()}

    def _update_actor(self, observations: Observations) -> dict[str, torch.Tensor]:
        actions, log_prob = self.actor.distribution(observations).sample(self.random)
        self._learn_critics(False)
        values = self.critics(self.actor.state(observations), self.actor.executed(actions.flatten(1))).mean(0)
        self._learn_critics(True)
        loss = (self.temperature * log_prob - values).mean()
        penalty = self.actor.penalty(observations, actions)
        if penalty is not None:
            loss = loss + penalty[0]
        if not self._step("actor", loss):
            return {}
        entropy = -log_prob.detach().mean()
        temperature_loss = self.log_temperature.exp() * (entropy - self.target_entropy)
        if self.settings.learn_temperature:
            self._step("temperature", temperature_loss)
        return {
            "sac/actor_loss": loss.detach(),
            "sac/temperature_loss": temperature_loss.detach(),
            "sac/temperature": self.temperature,
            "sac/entropy": entropy,
            "sac/action_size": actions.detach().abs().mean(),
            **({} if penalty is None else {"sac/residual_size": penalty[1]}),
        }

    def _learn_critics(self, learn: bool) -> None:
        for weight in self._weights["critics"]:
            weight.requires_grad_(learn)

    def _step(self, what: str, loss: torch.Tensor) -> bool:
        """Make a step, and return whether it was made: if the loss or a gradient is not finite, it is skipped and
        counted."""
        weights = self._weights[what]
        for weight in weights:
            weight.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        if not torch.isfinite(loss + norm):
            self.skipped += 1
            return False
        self.optimizers[what].step()
        return True

    # ---- what a checkpoint keeps -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "actor": self.actor.trained().state_dict(),
            "critics": self.critics.state_dict(),
            "targets": self.targets.state_dict(),
            "log_temperature": self.log_temperature.detach(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "random": self.random.get_state(),
            "updates": self.updates,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.actor.trained().load_state_dict(state["actor"])
        self.critics.load_state_dict(state["critics"])
        self.targets.load_state_dict(state["targets"])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.random.set_state(state["random"])
        self.updates, self.skipped = state["updates"], state["skipped"]
