"""Proximal policy optimisation (Schulman et al., 2017) with generalised advantage estimates (Schulman et al., 2016): a
value network predicts returns, and a decision's advantage is its result relative to that.

A decision is a whole chunk; its reward is the sum over its actions.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
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


def advantages(played: Played, gamma: float, trace: float) -> torch.Tensor:
    """Generalised advantage estimates, float32 [T]: sums of the following temporal-difference errors up to the end of
    the episode, discounted by gamma * trace per step."""
    errors = played.rewards + gamma * played.values_then - played.values
    estimates, following = torch.empty_like(errors), 0.0
    for step in range(len(errors) - 1, -1, -1):
        following = float(errors[step]) + gamma * trace * following * float(~played.over[step])
        estimates[step] = following
    return estimates


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
        self._played: tuple[Played, torch.Tensor, torch.Tensor] | None = None

    def state_values(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """The values of states, [B]."""
        values: torch.Tensor = self.value(self.view.state(observations)).squeeze(-1)
        return values

    def learn(self, played: Played, progress: float, rng: np.random.Generator) -> dict[str, float]:
        """Run epochs over an iteration's decisions, and return their metrics. progress: of the run, 0 to 1."""
        estimates = advantages(played, self.settings.gamma, self.settings.trace)
        value_targets = estimates + played.values
        self._played = played, estimates, value_targets
        shown = self._epochs(len(played.actions), progress, rng)
        explained = 1 - float((value_targets - played.values).var() / value_targets.var().clamp(min=1e-8))
        return {**shown, "ppo/explained_variance": explained}

    def _loss(self, rows: torch.Tensor, mine: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert self._played is not None
        played, estimates, value_targets = self._played
        all_estimates = estimates[rows]
        advantages = (estimates[mine] - all_estimates.mean()) / (all_estimates.std(correction=0) + 1e-8)
        loss, shown, _ = self._policy_loss(played, advantages, mine)
        observations = {name: values[mine] for name, values in played.observations.items()}
        value_loss = F.mse_loss(self.state_values(observations), value_targets[mine].to(self.view.device))
        return loss + self.settings.value_weight * value_loss, {**shown, "value_loss": value_loss}

    def show_values(self, tracker: RunTracker) -> None:
        """Log the distributions of the predicted values and of their targets."""
        if self._played is None:
            return
        played, _, value_targets = self._played
        for name, values in (("values", played.values), ("value_targets", value_targets)):
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
    """Run PPO with several worlds in turn, in this process, or in all processes of its group if it was started in one;
    resumes the same run if it was stopped. Raises InputError."""
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
        mine = {number: self._play_in(world, self._random(number)) for number, world in self.worlds.items()}
        parts = [part for _, part in sorted(each for ours in self._gathered(mine) for each in ours.items())]
        columns = {name: torch.cat([part.observations[name] for part in parts]) for name in parts[0].observations}
        rest = ("actions", "log_probs", "rewards", "values", "values_then", "over")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in rest}
        if self._scaled:  # by the returns of all worlds, one after another
            ends = torch.cat([part.ends for part in parts]).tolist()
            scaled = [self.ppo.reward_scale(*each) for each in zip(joined["rewards"].tolist(), ends, strict=True)]
            joined["rewards"] = torch.tensor(scaled, dtype=torch.float32)
        played = Played(columns, **joined)
        self._remember_states(played.observations)
        _, far = self._divergence_from_start(played)
        return far if self.ended is not None else {**self.ppo.learn(played, self.progress, rng), **far}

    def _play_in(self, world: Explorer, random: torch.Generator) -> _Part:
        rows: list[dict[str, np.ndarray]] = []
        ends: dict[int, dict[str, np.ndarray]] = {}  # {decision: the last observation of the episode that it ended}
        actions, log_probs, rewards, terminated = [], [], list[float](), list[bool]()
        for number in range(self._decisions):
            rows.append(self.view.look(world.observation))
            chunk, log_prob = self._decide(rows[-1], random)
            after, ended = world.step(self.view.in_units(chunk.flatten().numpy()))
            actions.append(chunk)
            log_probs.append(log_prob)
            rewards.append(after.reward if not self._of_success else float(ended is not None and bool(ended.success)))
            terminated.append(after.terminated)
            if after.terminated or after.truncated:
                ends[number] = self.view.look(after.next_observation)
            self._count_step(after.actions, ended)
        rows.append(self.view.look(world.observation))
        observations = stacked(rows)
        with torch.no_grad():
            values = self._state_values(observations)
            next_values = values[1:].clone()
            if ends:
                next_values[list(ends)] = self._state_values(stacked(list(ends.values())))
        next_values[torch.tensor(terminated)] = 0.0
        ended_at = torch.tensor([number in ends for number in range(len(actions))])
        over_at = ended_at.clone()
        over_at[-1] = True  # the next decisions come from another world
        return _Part(
            {name: column[:-1] for name, column in observations.items()},
            torch.cat(actions),
            torch.cat(log_probs),
            torch.tensor(rewards, dtype=torch.float64),
            values[:-1],
            next_values,
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


@dataclass(frozen=True)
class _Part(Played):
    """The decisions of one world, with unscaled rewards."""

    ends: torch.Tensor  # bool [T], where an episode ended
