"""The common part of methods that take many small steps on the current policy's own decisions, and stay near that
policy by a clipped ratio of probabilities (Schulman et al., 2017).

A decision is a whole chunk; its probability is the joint one of all its executed numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from atlas.config import OnPolicyConfig
from atlas.learning.policy_view import PolicyView
from atlas.learning.rank_group import RankGroup
from atlas.training.optimizer import trained_parameters

_ROWS = 256  # per forward pass without gradients
Played = TypeVar("Played", bound="PlayedDecisions")


@dataclass(frozen=True)
class PlayedDecisions:
    """T decisions of one policy."""

    observations: dict[str, torch.Tensor]  # [T, ...] each
    actions: torch.Tensor  # float32 [T, H, A], scaled
    log_probs: torch.Tensor  # float32 [T]

    def at(self: Played, rows: torch.Tensor, device: torch.device) -> Played:
        """Some of the decisions, int64 [B], on a device."""

        def chosen(values: torch.Tensor) -> torch.Tensor:
            return values.index_select(0, rows).to(device)

        columns = {name: chosen(values) for name, values in vars(self).items() if isinstance(values, torch.Tensor)}
        return replace(self, observations={n: chosen(values) for n, values in self.observations.items()}, **columns)


def divergence_from(other: torch.Tensor, drawn_by: torch.Tensor) -> torch.Tensor:
    """Estimates float32 [T] of the KL divergence from the policy that drew some actions to another one, by the
    log-probabilities [T] of both: never negative, unbiased, and of low variance."""
    difference = other - drawn_by
    return difference.exp() - 1 - difference


def clipped_loss(
    log_probs: torch.Tensor, before: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> Any:
    """The loss for actions that had the log-probabilities `before`, [B]; ratios beyond 1 - low or 1 + high gain
    nothing. Also returns the approximate KL divergence and the share of clipped ratios."""
    ratio = (log_probs - before).exp()
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages).mean()
    with torch.no_grad():
        divergence = divergence_from(log_probs, before).mean()
        clipped = ((ratio < 1 - low) | (ratio > 1 + high)).float().mean()
    return loss, divergence, clipped


class ClippedLearner(ABC):
    """A policy and its optimizer, with a loss of minibatches that an algorithm defines."""

    def __init__(
        self,
        name: str,
        settings: OnPolicyConfig,
        view: PolicyView,
        more: Iterable[nn.Parameter] = (),
        group: RankGroup | None = None,
        more_rate: float | None = None,
    ) -> None:
        """name: of the metrics. more: parameters trained besides the policy's, with the learning rate more_rate if that
        is given. group: the processes that see the same decisions and learn as one; each takes its share of every
        minibatch."""
        self.name, self.view, self._settings = name, view, settings
        self.group = group or RankGroup()
        own, beside = [parameter for _, parameter in trained_parameters(view.trained())], list(more)
        self.parameters = [*own, *beside]
        groups = [own, beside] if more_rate is not None else [self.parameters]
        self._rates = [settings.learning_rate, *([] if more_rate is None else [more_rate])]
        self.optimizer = torch.optim.Adam(
            [{"params": each} for each in groups], settings.learning_rate, eps=1e-5, fused=True
        )
        self.updates, self.skipped = 0, 0

    @abstractmethod
    def _loss(self, rows: torch.Tensor, mine: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the rows `mine` of a minibatch, and its metrics, which include `kl`."""

    def _epochs(self, count: int, progress: float, rng: np.random.Generator) -> dict[str, float]:
        """Run epochs over `count` decisions, and return the means of the metrics. progress: of the run, 0 to 1.

        The epochs end once the policy is farther than `kl_limit` from the one that played.
        """
        settings = self._settings
        left = 1 - progress if settings.anneal else 1
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * left
        shown: dict[str, list[float]] = {}
        for rows in self._minibatches(count, rng):
            mine, share = self._share(rows)
            loss, parts = self._loss(rows, mine)
            means = torch.stack([loss, *parts.values()]).detach() * share
            self.group.add([means])
            total, *values = means.tolist()
            metrics = dict(zip(parts, values, strict=True))
            past_limit = settings.kl_limit is not None and metrics["kl"] > settings.kl_limit
            metrics["grad_norm"] = 0.0 if past_limit else self._descend(loss * share, total)
            for name, value in metrics.items():
                shown.setdefault(name, []).append(value)
            if past_limit:
                break
        overall = {f"{self.name}/{name}": float(np.mean(values)) for name, values in shown.items()}
        return {**overall, f"{self.name}/learning_rate": settings.learning_rate * left}

    def _share(self, rows: torch.Tensor) -> tuple[torch.Tensor, float]:
        """This process's rows of a minibatch, and their share of the whole; one row with share 0 if there are fewer
        rows than processes."""
        mine = rows[self.group.rank :: self.group.size]
        return (mine, len(mine) / len(rows)) if len(mine) else (rows[:1], 0.0)

    def _minibatches(self, count: int, rng: np.random.Generator) -> Iterable[torch.Tensor]:
        for _ in range(self._settings.epochs):
            yield from torch.from_numpy(rng.permutation(count)).split(self._settings.batch_size)

    def _policy_loss(
        self, decisions: PlayedDecisions, advantages: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """The clipped loss minus the entropy bonus, for B decisions and their advantages float32 [B] on the policy's
        device; its metrics; and the current log-probabilities [B]."""
        settings = self._settings
        distribution = self.view.distribution(decisions.observations)
        log_probs = distribution.log_prob(decisions.actions)
        loss, divergence, clipped = clipped_loss(
            log_probs, decisions.log_probs, advantages, settings.clip_low, settings.clip_high
        )
        entropy = distribution.entropy.mean()
        shown = {"policy_loss": loss, "entropy": entropy, "kl": divergence, "clip_fraction": clipped}
        return loss - settings.entropy_weight * entropy, shown, log_probs

    def _descend(self, loss: torch.Tensor, total: float) -> float:
        """Make a step, or count it as skipped if the loss or a gradient is not finite; return the gradients' norm.
        loss: this process's part of `total`."""
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.group.add(gradients)
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(self.parameters, self._settings.max_grad_norm, norm)
        size = float(norm)
        self.updates += 1
        if math.isfinite(size + total):
            self.optimizer.step()
        else:
            self.skipped += 1
        return size

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {
            "policy": self.view.trained().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.view.trained().load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.skipped = state["updates"], state["skipped"]


class StartPolicy:
    """A frozen copy of the initial policy, to measure how far the current one is from it."""

    def __init__(self, view: PolicyView) -> None:
        self._view = view.copy()

    @torch.no_grad()
    def log_probs(self, decisions: PlayedDecisions) -> torch.Tensor:
        """The log-probabilities of decisions under the initial policy, float32 [T]."""
        parts = torch.arange(len(decisions.actions)).split(_ROWS)
        found = []
        for rows in parts:
            some = decisions.at(rows, self._view.device)
            found.append(self._view.distribution(some.observations).log_prob(some.actions).cpu())
        return torch.cat(found)
