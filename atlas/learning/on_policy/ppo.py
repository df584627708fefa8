"""Proximal policy optimisation (Schulman et al., 2017) with generalised advantage estimates (Schulman et al., 2016): a
value network predicts returns, and a decision's advantage is its result relative to that.

A decision is a whole chunk; its reward is the sum over its actions.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from atlas.config import Config, PpoConfig
from atlas.errors import InputError
from atlas.learning.boards.judged_episodes import Judge
from atlas.learning.experience_replay import DecisionBatch
from atlas.learning.explorer import EpisodeProgress, Explorer
from atlas.learning.on_policy.clipped_learning import ClippedLearner, PlayedDecisions
from atlas.learning.on_policy.on_policy_run import OnPolicyRun, check_shared, stacked
from atlas.learning.online_run import OnlineRun
from atlas.learning.policy_view import PolicyView
from atlas.learning.rank_group import RankGroup
from atlas.learning.returns import OnlineResult
from atlas.system.process_control.threads import one_thread
from atlas.tracking import RunTracker
from atlas.training.guards.signals import StopRequest, listening


@dataclass(frozen=True)
class Played(PlayedDecisions):
    """T decisions of one policy, in order."""

    rewards: torch.Tensor  # float32 [T]
    values: torch.Tensor  # float32 [T], of the observations
    values_then: torch.Tensor  # float32 [T], of the next observations; 0 if the task was over
    over: torch.Tensor  # bool [T], the last of an episode


@dataclass(frozen=True)
class Learned(PlayedDecisions):
    """T decisions as they are learned from."""

    values: torch.Tensor  # float32 [T], of the observations, when they were played
    advantages: torch.Tensor  # float32 [T]
    value_targets: torch.Tensor  # float32 [T]


def advantages(played: Played, gamma: float, trace: float) -> torch.Tensor:
    """Generalised advantage estimates, float32 [T]: sums of the following temporal-difference errors up to the end of
    the episode, discounted by gamma * trace per step."""
    errors = played.rewards + gamma * played.values_then - played.values
    estimates, following = list[float](), 0.0
    for error, over in zip(reversed(errors.tolist()), reversed(played.over.tolist()), strict=True):
        following = error + gamma * trace * following * (not over)
        estimates.append(following)
    return torch.tensor(estimates[::-1], dtype=errors.dtype)


class PPO(ClippedLearner):
    """The policy, a value network, and their optimizer."""

    def __init__(self, settings: PpoConfig, view: PolicyView, seed: int, group: RankGroup | None = None) -> None:
        torch.manual_seed(seed)
        sizes = [view.state_dim, *[settings.width] * settings.layers]
        layers = [module for a, b in pairwise(sizes) for module in (_linear(a, b, 2**0.5), nn.Tanh())]
        self.settings, self.value = settings, nn.Sequential(*layers, _linear(sizes[-1], 1, 1.0))
        self.value.to(view.device)
        super().__init__("ppo", settings, view, self.value.parameters(), group, settings.value_learning_rate)
        self.reward_scale = RunningScale(settings.gamma)
        self._learned: Learned | None = None

    def state_values(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """The values of states, [B]."""
        values: torch.Tensor = self.value(self.view.state(observations)).squeeze(-1)
        return values

    def learn(self, played: Played, progress: float, rng: np.random.Generator) -> dict[str, float]:
        """Run epochs over an iteration's decisions, and return their metrics. progress: of the run, 0 to 1."""
        estimates = advantages(played, self.settings.gamma, self.settings.trace)
        value_targets = estimates + played.values
        decisions = played.observations, played.actions, played.log_probs
        self._learned = Learned(*decisions, played.values, estimates, value_targets)
        shown = self._epochs(len(played.actions), progress, rng)
        explained = 1 - float((value_targets - played.values).var() / value_targets.var().clamp(min=1e-8))
        return {**shown, "ppo/explained_variance": explained}

    def _loss(self, rows: torch.Tensor, mine: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        learned = self._learned
        assert learned is not None
        some, estimates = learned.at(mine, self.view.device), learned.advantages[rows].to(self.view.device)
        advantages = (some.advantages - estimates.mean()) / (estimates.std(correction=0) + 1e-8)
        loss, shown, _ = self._policy_loss(some, advantages)
        value_loss = F.mse_loss(self.state_values(some.observations), some.value_targets)
        return loss + self.settings.value_weight * value_loss, {**shown, "value_loss": value_loss}

    def show_values(self, tracker: RunTracker) -> None:
        """Log the distributions of the predicted values and of their targets."""
        if self._learned is None:
            return
        for name, values in (("values", self._learned.values), ("value_targets", self._learned.value_targets)):
            tracker.log_histogram(f"ppo/{name}", values * self._size)

    @property
    def _size(self) -> float:
        """The reward that a learned value of 1 stands for."""
        return self.reward_scale.deviation if self.settings.scale_rewards else 1.0

    @torch.no_grad()
    def values_and_targets(self, decisions: DecisionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The values of T states, and their one-step targets: float32 [T] each, in the rewards that are learned from,
        before scaling."""
        values, next_values = (
            self.state_values(decisions.observations) * self._size,
            self.state_values(decisions.next_observations) * self._size,
        )
        return values.cpu(), decisions.returns + decisions.discounts * next_values.cpu()

    def state_dict(self) -> dict[str, Any]:
        own = {"value": self.value.state_dict(), "reward_scale": self.reward_scale.state()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.value.load_state_dict(state["value"])
        self.reward_scale.restore(state["reward_scale"])


class RunningScale:
    """Divides rewards by the standard deviation of the discounted returns so far, so that values are of order 1."""

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
        return reward / self.deviation

    @property
    def deviation(self) -> float:
        """The standard deviation of the returns so far; 1 if all were the same."""
        deviation = (self._squares / max(1, self._count)) ** 0.5
        return deviation if deviation > 1e-8 else 1.0

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
    """Run PPO with several worlds side by side, in this process, or in all processes of its group if it was started in
    one; resumes the same run if it was stopped. Raises InputError."""
    with ExitStack() as held, one_thread(), listening() as stop:
        group = RankGroup.join(config.distributed, held)
        return _Run(OnlineRun(config, "ppo", env, held, stop, checkpoint, group), stop).play()


class _Run(OnPolicyRun):
    def __init__(self, run: OnlineRun, stop: StopRequest) -> None:
        settings, group = run.config.learning.ppo, run.group
        self.ppo = PPO(settings, run.policy_view, run.config.seed, group)
        self._decisions, self._gamma = settings.decisions, settings.gamma
        self._scaled, self._of_success = settings.scale_rewards, settings.reward == "success"
        if self._of_success and not run.spec.judged:
            raise InputError(f"learning.ppo.reward is success, but '{run.env}' does not tell it; use reward=world.")
        count = settings.worlds
        check_shared("learning.ppo.worlds", count, group)
        super().__init__(run, stop, settings, self.ppo)
        # Without the worlds' states in the checkpoint, they begin with the next episode.
        first = -(-self.episodes // count) + (1 if self.episodes else 0)
        self.worlds = {
            i: Explorer(
                run.open_world(), run.config.seed, i, count, first, limit=settings.episode_steps, keep=run.keeper()
            )
            for i in range(group.rank, count, group.size)
        }
        stood = self._worlds_stood()
        for i in stood.keys() & self.worlds.keys():
            self.worlds[i].resume(EpisodeProgress(**{name: _array(value) for name, value in stood[i].items()}))

    def _worlds_stand(self) -> dict[int, dict[str, Any]]:
        mine = {number: vars(world.progress) for number, world in self.worlds.items()}
        return {number: _tensors(stand) for ours in self.group.gathered(mine) for number, stand in ours.items()}

    @property
    def _judge(self) -> Judge:
        return Judge(self.ppo, self._gamma, self._of_success)

    def _look(self) -> None:
        self.ppo.show_values(self.learner_board)
        super()._look()

    def _iterate(self, rng: np.random.Generator) -> dict[str, float]:
        """Play `decisions` in each world with the current policy, and learn from them."""
        parts = [part for _, part in sorted(each for ours in self._gathered(self._play()) for each in ours.items())]
        columns = {name: torch.cat([part.observations[name] for part in parts]) for name in parts[0].observations}
        rest = ("actions", "log_probs", "rewards", "values", "values_then", "over")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in rest}
        if self._scaled:  # by the returns of all worlds, one after another
            ends = torch.cat([part.ends for part in parts]).tolist()
            scaled = [self.ppo.reward_scale(*each) for each in zip(joined["rewards"].tolist(), ends, strict=True)]
            joined["rewards"] = torch.tensor(scaled)
        joined["rewards"] = joined["rewards"].float()
        played = Played(columns, **joined)
        self._remember_states(played.observations)
        _, far = self._divergence_from_start(played)
        return far if self.ended is not None else {**self.ppo.learn(played, self.progress, rng), **far}

    def _play(self) -> dict[int, _Part]:
        """Play `decisions` in each of this process's worlds, side by side: the policy is asked for all of them at once,
        and each world's random numbers are its own."""
        worlds = list(self.worlds.values())
        records, random = [_Record() for _ in worlds], [self._random(number) for number in self.worlds]
        for number in range(self._decisions):
            rows = [self.view.look(world.observation) for world in worlds]
            decided = self._decide(stacked(rows), random)
            for world, record, row, chunk, log_prob, actions in zip(worlds, records, rows, *decided, strict=True):
                after, ended = world.step(actions)
                reward = after.reward if not self._of_success else float(ended is not None and bool(ended.success))
                record.decisions.append((row, chunk, log_prob, reward, after.terminated))
                if ended is not None:
                    record.ends[number] = self.view.look(after.next_observation)
                self._count_step(after.actions, ended)
        return {
            number: self._part_of(record, self.view.look(world.observation))
            for (number, world), record in zip(self.worlds.items(), records, strict=True)
        }

    @torch.no_grad()
    def _part_of(self, record: _Record, row_after: dict[str, np.ndarray]) -> _Part:
        """row_after: of what is seen after the last decision."""
        rows, chunks, log_probs, rewards, terminated = zip(*record.decisions, strict=True)
        observations = stacked([*rows, row_after])
        values = self._state_values(observations)
        values_then = values[1:].clone()
        if record.ends:
            values_then[list(record.ends)] = self._state_values(stacked(list(record.ends.values())))
        values_then[torch.tensor(terminated)] = 0.0
        ended_at = torch.tensor([number in record.ends for number in range(len(rows))])
        over_at = ended_at.clone()
        over_at[-1] = True  # the next decisions come from another world
        return _Part(
            {name: column[:-1] for name, column in observations.items()},
            torch.stack(chunks),
            torch.stack(log_probs),
            torch.tensor(rewards, dtype=torch.float64),
            values[:-1],
            values_then,
            over_at,
            ended_at,
        )

    def _state_values(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """`PPO.state_values` in batches: images need much memory."""
        parts = torch.arange(len(next(iter(observations.values())))).split(256)
        return torch.cat(
            [
                self.ppo.state_values({name: values[rows] for name, values in observations.items()}).cpu()
                for rows in parts
            ]
        )


def _tensors(stand: dict[str, Any]) -> dict[str, Any]:
    """A world's state with its arrays as tensors, for a file; the inverse of `_array`."""
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in stand.items()}


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


@dataclass
class _Record:
    """What one world has seen and done in an iteration."""

    # The row of what was seen, the chunk [H, A], its log-probability [], the reward, and whether the task ended
    decisions: list[tuple[dict[str, np.ndarray], torch.Tensor, torch.Tensor, float, bool]] = field(default_factory=list)
    ends: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # {decision that ended an episode: last row}


@dataclass(frozen=True)
class _Part(Played):
    """The decisions of one world, with unscaled rewards."""

    ends: torch.Tensor  # bool [T], where an episode ended
