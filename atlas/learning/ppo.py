"""Proximal policy optimisation (Schulman et al., 2017): many small steps on what the present policy has just played,
each held near it by a clipped ratio of probabilities. Advantages are generalised estimates (Schulman et al., 2016).

A decision is a whole chunk: its reward is the sum over its actions, its probability that of all its numbers together.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from atlas.config import Config, PpoConfig
from atlas.learning.explorer import EpisodeLog, Explorer
from atlas.learning.online_run import OnlineRun
from atlas.learning.policy_view import PolicyView
from atlas.learning.returns import OnlineResult
from atlas.rollout.evaluation import one_thread
from atlas.system.tensors import load_nested, save_nested
from atlas.training.guards.signals import Interrupted, StopRequest, listening

logger = logging.getLogger(__name__)

_LEARNER = "learner.safetensors"


@dataclass(frozen=True)
class Played:
    """T decisions of one policy, in order."""

    seen: dict[str, torch.Tensor]  # [T, ...] each
    actions: torch.Tensor  # float32 [T, H, A], scaled
    log_probs: torch.Tensor  # float32 [T]
    rewards: torch.Tensor  # float32 [T]
    values: torch.Tensor  # float32 [T], of what was seen
    values_then: torch.Tensor  # float32 [T], of what was seen after; 0 where the task was over
    over: torch.Tensor  # bool [T], the last of an episode


def advantages(played: Played, gamma: float, trace: float) -> torch.Tensor:
    """Generalised advantage estimates, float32 [T]: sums of the errors of the values to come, each step of which counts
    gamma * trace times as much as the one before, up to the end of the episode."""
    errors = played.rewards + gamma * played.values_then - played.values
    found, following = torch.empty_like(errors), 0.0
    for step in range(len(errors) - 1, -1, -1):
        following = float(errors[step]) + gamma * trace * following * float(~played.over[step])
        found[step] = following
    return found


def clipped_loss(log_probs: torch.Tensor, before: torch.Tensor, worth: torch.Tensor, low: float, high: float) -> Any:
    """The loss of a policy whose actions had the log-probabilities `before`, [B]: nothing is gained by a ratio beyond
    1 - low or 1 + high. Also the approximate KL divergence and the share of ratios that were clipped."""
    difference = log_probs - before
    ratio = difference.exp()
    loss = -torch.min(ratio * worth, ratio.clamp(1 - low, 1 + high) * worth).mean()
    with torch.no_grad():
        divergence = (ratio - 1 - difference).mean()  # an estimate that is never negative and varies little
        clipped = ((ratio < 1 - low) | (ratio > 1 + high)).float().mean()
    return loss, divergence, clipped


class PPO:
    """The policy, a network for the values of states, and their optimizer."""

    def __init__(self, settings: PpoConfig, view: PolicyView, seed: int) -> None:
        self.settings, self.view = settings, view
        torch.manual_seed(seed)
        sizes = [view.state_dim, *[settings.width] * settings.layers]
        layers = [module for a, b in pairwise(sizes) for module in (_linear(a, b, 2**0.5), nn.Tanh())]
        self.value = nn.Sequential(*layers, _linear(sizes[-1], 1, 1.0))
        self.parameters = [*view.trained().parameters(), *self.value.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, settings.learning_rate, eps=1e-5, fused=True)
        self.reward_scale = RunningScale(settings.gamma)
        self.updates, self.skipped = 0, 0

    def worth(self, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        """The values of states, [B]."""
        values: torch.Tensor = self.value(self.view.state(seen)).squeeze(-1)
        return values

    def learn(self, played: Played, progress: float, draw: np.random.Generator) -> dict[str, float]:
        """Some epochs over what was played; what to show of them. progress: of the run, 0 to 1."""
        settings, count = self.settings, len(played.actions)
        gained = advantages(played, settings.gamma, settings.trace)
        wanted = gained + played.values
        rate = settings.learning_rate * (1 - progress if settings.anneal else 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        shown: dict[str, list[float]] = {}
        for _ in range(settings.epochs):
            order = torch.from_numpy(draw.permutation(count))
            for rows in order.split(settings.batch_size):
                found = self._step(played, gained, wanted, rows)
                for name, value in found.items():
                    shown.setdefault(name, []).append(value)
            if settings.most_divergence is not None and shown["ppo/kl"][-1] > settings.most_divergence:
                break  # the policy has moved far enough
        explained = 1 - float((wanted - played.values).var() / wanted.var().clamp(min=1e-8))
        means = {name: float(np.mean(values)) for name, values in shown.items()}
        return {**means, "ppo/explained_variance": explained, "ppo/learning_rate": rate}

    def _step(self, played: Played, gained: torch.Tensor, wanted: torch.Tensor, rows: torch.Tensor) -> dict[str, float]:
        settings, seen = self.settings, {name: values[rows] for name, values in played.seen.items()}
        worth = gained[rows]
        worth = (worth - worth.mean()) / (worth.std(correction=0) + 1e-8)
        distribution = self.view.distribution(seen)
        log_probs = distribution.log_prob(played.actions[rows])
        loss, divergence, clipped = clipped_loss(
            log_probs, played.log_probs[rows], worth, settings.clip_low, settings.clip_high
        )
        value_loss, entropy = F.mse_loss(self.worth(seen), wanted[rows]), distribution.entropy.mean()
        whole = loss + settings.value_weight * value_loss - settings.entropy_weight * entropy
        self.optimizer.zero_grad(set_to_none=True)
        whole.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm)
        self.updates += 1
        if torch.isfinite(whole + norm):
            self.optimizer.step()
        else:
            self.skipped += 1
        return {
            "ppo/policy_loss": float(loss),
            "ppo/value_loss": float(value_loss),
            "ppo/entropy": float(entropy),
            "ppo/kl": float(divergence),
            "ppo/clip_fraction": float(clipped),
            "ppo/grad_norm": float(norm),
        }

    # ---- what a checkpoint keeps -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.view.trained().state_dict(),
            "value": self.value.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reward_scale": self.reward_scale.state(),
            "updates": self.updates,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.view.trained().load_state_dict(state["policy"])
        self.value.load_state_dict(state["value"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reward_scale.restore(state["reward_scale"])
        self.updates, self.skipped = state["updates"], state["skipped"]


class RunningScale:
    """Divides rewards by the deviation of the discounted returns so far, so that values are of the size of 1."""

    def __init__(self, gamma: float) -> None:
        self._gamma, self._return = gamma, 0.0
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def __call__(self, reward: float, over: bool) -> float:
        self._return = self._return * self._gamma + reward
        self._count += 1
        off = self._return - self._mean
        self._mean += off / self._count
        self._squares += off * (self._return - self._mean)
        if over:
            self._return = 0.0
        deviation = (self._squares / self._count) ** 0.5
        return reward / deviation if deviation > 1e-8 else reward

    def state(self) -> list[float]:
        return [self._return, float(self._count), self._mean, self._squares]

    def restore(self, state: list[float]) -> None:
        self._return, count, self._mean, self._squares = state
        self._count = int(count)


def _linear(before: int, after: int, gain: float) -> nn.Linear:
    layer = nn.Linear(before, after)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


# ---- the run -------------------------------------------------------------------------------------------------


def learn_ppo(config: Config, env: str, checkpoint: str | None = None) -> OnlineResult:
    """PPO in one process, with several worlds in turn; goes on where the same run was stopped. Raises InputError."""
    with ExitStack() as held, one_thread(), listening() as stop:
        run = OnlineRun(config, "ppo", env, held, stop, checkpoint)
        return _Run(run, stop).play()


class _Run:
    def __init__(self, run: OnlineRun, stop: StopRequest) -> None:
        assert isinstance(run.settings, PpoConfig)
        self.run, self.settings, self.view, self.stop = run, run.settings, run.view, stop
        self.ppo = PPO(run.settings, run.view, run.config.seed)
        self.steps, self.rounds, episodes, self.seconds = 0, 0, 0, 0.0
        if (found := run.latest()) is not None:
            folder, facts = found
            self.ppo.load_state_dict(load_nested(folder / _LEARNER))
            self.steps, self.rounds, self.seconds = facts["steps"], facts["rounds"], facts["seconds"]
            episodes = facts["episodes"]
        self.log = EpisodeLog()
        self.log.steps, self.log.episodes = self.steps, episodes
        self.board, self.learner_board = run.tracker("actor", self.steps), run.tracker("learner", self.ppo.updates)
        count = run.settings.worlds
        # Those that were at an episode when the run was stopped begin with the next one.
        first = -(-episodes // count) + (1 if episodes else 0)
        self.worlds = [Explorer(run.open_world(), run.config.seed, i, count, first) for i in range(count)]

    def play(self) -> OnlineResult:
        before, looked, saved = self.run.before(), self.steps, self.steps
        begun = time.monotonic() - self.seconds
        while self.steps < self.settings.steps:
            played = self._play()
            draw = np.random.default_rng([self.run.config.seed, 7, self.rounds])
            shown = self.ppo.learn(played, min(1.0, self.steps / self.settings.steps), draw)
            self.rounds += 1
            self.learner_board.step = self.ppo.updates
            counts = {"learner/update_steps": self.ppo.updates, "learner/skipped_updates": self.ppo.skipped}
            self.learner_board.log({**shown, **counts})
            if self.steps - looked >= self.settings.eval_interval:
                looked = self.steps
                self.run.look(self.learner_board, self.steps)
            self.seconds = time.monotonic() - begun
            if self.stop.signal is not None or self.steps - saved >= self.settings.save_interval:
                saved = self.steps
                self._save()
            if self.stop.signal is not None:
                raise Interrupted(self.stop.signal)
        self.run.look(self.learner_board, self.steps)
        self._save()
        return self.run.conclude(before, self.steps, self.log.episodes, self.ppo.updates, self.seconds)

    def _play(self) -> Played:
        """`decisions` of each world, by the present policy."""
        random = torch.Generator().manual_seed(hash_of(self.run.config.seed, self.rounds))
        parts = [self._play_in(world, random) for world in self.worlds]
        columns = {name: torch.cat([part.seen[name] for part in parts]) for name in parts[0].seen}
        rest = ("actions", "log_probs", "rewards", "values", "values_then", "over")
        return Played(columns, **{name: torch.cat([getattr(part, name) for part in parts]) for name in rest})

    def _play_in(self, world: Explorer, random: torch.Generator) -> Played:
        rows: list[dict[str, np.ndarray]] = []
        ends: dict[int, dict[str, np.ndarray]] = {}  # what an episode ended with, by the decision
        actions, log_probs, rewards, terminated = [], [], list[float](), list[bool]()
        for number in range(self.settings.decisions):
            rows.append(self.view.look(world.observation))
            with torch.no_grad():
                seen = {name: torch.from_numpy(values)[None] for name, values in rows[-1].items()}
                chunk, log_prob = self.view.distribution(seen).sample(random)
            after, ended = world.step(self.view.in_units(chunk.flatten().clamp(-1, 1).numpy()))
            actions.append(chunk)
            log_probs.append(log_prob)
            over = after.terminated or after.truncated
            scaled = self.ppo.reward_scale(after.reward, over) if self.settings.scale_rewards else after.reward
            rewards.append(scaled)
            terminated.append(after.terminated)
            self.steps += len(after.actions)
            self.log.decided(after.actions)
            if over:
                ends[number] = self.view.look(after.next_observation)
            if ended is not None:
                self.board.log(self.log.ended(ended, False, 0), self.log.steps)
        rows.append(self.view.look(world.observation))
        seen = _stacked(rows)
        with torch.no_grad():
            values = self.ppo.worth(seen)
            then = values[1:].clone()
            if ends:
                then[list(ends)] = self.ppo.worth(_stacked(list(ends.values())))
        then[torch.tensor(terminated)] = 0.0
        over_at = torch.tensor([number in ends for number in range(len(actions))])
        over_at[-1] = True  # the next decisions are another world's
        return Played(
            {name: column[:-1] for name, column in seen.items()},
            torch.cat(actions),
            torch.cat(log_probs),
            torch.tensor(rewards, dtype=torch.float32),
            values[:-1],
            then,
            over_at,
        )

    def _save(self) -> None:
        facts = {
            "steps": self.steps,
            "rounds": self.rounds,
            "episodes": self.log.episodes,
            "seconds": self.seconds,
        }

        def write(folder: Path) -> None:
            save_nested(folder / _LEARNER, self.ppo.state_dict())

        self.run.save(self.steps, facts, write)


def _stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def hash_of(seed: int, number: int) -> int:
    """A seed of a generator for the so many-th of something."""
    return int(np.random.default_rng([seed, 8, number]).integers(2**62))
