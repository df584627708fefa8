"""Replays an episode of an evaluation, with the value and density of each of its decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from atlas.environments.environment import Environment
from atlas.learning.experience_replay import DecisionBatch
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.episode_player import EpisodePlayer
from atlas.rollout.filming.decision_curves import DecisionCurve
from atlas.rollout.success_report import EpisodeOutcome
from atlas.rollout.traces import Trace
from atlas.rollout.transitions import Transition
from atlas.types import Observation


class Rated(Protocol):
    """A distribution of actions that gives their log-probabilities."""

    @property
    def most_likely(self) -> torch.Tensor: ...

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor: ...


class Decides(Protocol):
    """The part of a policy's view that is needed here."""

    @property
    def random_dim(self) -> int:
        """The number of an action's numbers that are drawn."""
        ...

    def look(self, observation: Observation) -> dict[str, np.ndarray]: ...

    def distribution(self, observations: dict[str, torch.Tensor]) -> Rated: ...

    def in_units(self, scaled: np.ndarray) -> np.ndarray: ...


class ValueEstimator(Protocol):
    def values_and_targets(self, decisions: DecisionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values of T decisions and their targets, float [T] each, in the world's rewards. Does not change
        the run's random numbers."""
        ...


@dataclass(frozen=True)
class Judge:
    """A value estimator (critics or a value network), and what it predicts."""

    estimator: ValueEstimator
    gamma: float  # the discount of a decision
    of_success: bool = False  # it predicts 1 for success instead of the world's rewards


@dataclass(frozen=True)
class JudgedEpisode:
    """An episode of T decisions."""

    outcome: EpisodeOutcome
    trace: Trace
    steps: tuple[int, ...]  # the environment steps at which the decisions were made
    log_densities: np.ndarray  # float [T], of the actions, averaged over their numbers
    values: np.ndarray | None = None  # float [T]
    targets: np.ndarray | None = None

    def curves(self, q_value: bool, action_probability: bool) -> tuple[DecisionCurve, ...]:
        """The requested curves, if they are available."""
        curves = list[DecisionCurve]()
        if q_value and self.values is not None:
            curves.append(DecisionCurve("value", self.steps, self.values, self.targets, "target"))
        if action_probability:
            curves.append(DecisionCurve("log density of the action", self.steps, self.log_densities))
        return tuple(curves)


@torch.no_grad()
def play_judged(env: Environment, planned: PlannedEpisode, view: Decides, judge: Judge | None) -> JudgedEpisode:
    """Play an episode with the most likely actions; record each decision's density and, with a judge, its value."""
    player = EpisodePlayer(env, planned, record=True, transitions=True)
    segment, transitions, steps = player.begin(), list[Transition](), [0]
    assert segment.observation is not None
    rows, chunks, densities = [view.look(segment.observation)], list[torch.Tensor](), list[float]()
    observation = segment.observation
    while not segment.done:
        distribution = view.distribution({name: torch.from_numpy(values)[None] for name, values in rows[-1].items()})
        likely = distribution.most_likely
        densities.append(float(distribution.log_prob(likely)) / view.random_dim)
        chunks.append(likely.cpu())
        segment = player.run(view.in_units(chunks[-1].flatten().numpy()))
        transitions.append(Transition.between(observation, segment))
        observation = transitions[-1].next_observation
        rows.append(view.look(observation))
        steps.append(steps[-1] + segment.steps)
    assert segment.trace is not None
    rewards = torch.tensor([each.reward for each in transitions], dtype=torch.float32)
    outcome = EpisodeOutcome(
        planned.instruction,
        planned.seed,
        segment.success,
        float(rewards.sum()),
        steps[-1],
        judged=env.spec.judged,
    )
    judged = JudgedEpisode(outcome, segment.trace, tuple(steps[:-1]), np.array(densities))
    if judge is None:
        return judged
    if judge.of_success:
        rewards = torch.zeros(len(transitions))
        rewards[-1] = float(segment.success)
    observations = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    discounts = torch.full((len(transitions),), judge.gamma)
    discounts[-1] *= float(not segment.terminated)
    values, targets = judge.estimator.values_and_targets(
        DecisionBatch(
            {name: column[:-1] for name, column in observations.items()},
            torch.cat(chunks).flatten(1),
            rewards,
            discounts,
            {name: column[1:] for name, column in observations.items()},
        )
    )
    return JudgedEpisode(outcome, segment.trace, judged.steps, judged.log_densities, values.numpy(), targets.numpy())
