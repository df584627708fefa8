"""Group-relative policy optimisation (Shao et al., 2024): several episodes share a start, and the advantage of each is
its result relative to the others of its group. There is no value network.

This follows SimpleVLA-RL (Li et al., 2025): groups in which all episodes succeed or all fail teach nothing and are left
out, the clip range is wider above than below (Yu et al., 2025), and there is no KL penalty by default.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from atlas.config import Config, GrpoConfig
from atlas.learning.explorer import Explorer
from atlas.learning.on_policy.clipped_learning import ClippedLearner, PlayedDecisions, divergence_from
from atlas.learning.on_policy.on_policy_run import OnPolicyRun, check_shared, stacked
from atlas.learning.online_run import OnlineRun
from atlas.learning.policy_view import PolicyView
from atlas.learning.rank_group import RankGroup
from atlas.learning.returns import OnlineResult
from atlas.system.process_control.threads import one_thread
from atlas.training.guards.signals import StopRequest, listening

logger = logging.getLogger(__name__)

_PATIENCE = 5  # iterations without a mixed group until a warning


@dataclass(frozen=True)
class Grouped(PlayedDecisions):
    """T decisions of one policy, in episodes of groups."""

    advantages: torch.Tensor  # float32 [T], of each decision's episode
    start: torch.Tensor | None = None  # float32 [T], the log-probabilities under the initial policy


def group_advantages(scores: np.ndarray, judged: bool, low: float, high: float) -> np.ndarray | None:
    """The advantages of a group's episodes, float32 [G], with mean 0 and deviation 1, from their scores, float [G].

    judged: the scores are successes, 0 or 1, whose mean must lie from `low` to `high`. Returns None if it does not, or
    if all scores are equal.
    """
    deviation = float(scores.std())
    if deviation < 1e-6 or (judged and not low <= float(scores.mean()) <= high):
        return None
    return ((scores - scores.mean()) / deviation).astype(np.float32)


class GRPO(ClippedLearner):
    """The policy and its optimizer."""

    def __init__(self, settings: GrpoConfig, view: PolicyView, group: RankGroup | None = None) -> None:
        super().__init__("grpo", settings, view, group=group)
        self.settings = settings
        self._played: Grouped | None = None

    def learn(self, played: Grouped, progress: float, rng: np.random.Generator) -> dict[str, float]:
        """Run epochs over an iteration's decisions, and return their metrics. progress: of the run, 0 to 1."""
        self._played = played
        return self._epochs(len(played.actions), progress, rng)

    def _loss(self, rows: torch.Tensor, mine: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        played = self._played
        assert played is not None
        some = played.at(mine, self.view.device)
        loss, shown, log_probs = self._policy_loss(some, some.advantages)
        if self.settings.kl_weight and some.start is not None:
            divergence = divergence_from(some.start, log_probs).mean()
            loss, shown["kl_loss"] = loss + self.settings.kl_weight * divergence, divergence
        return loss, shown


def learn_grpo(config: Config, env: str, checkpoint: str | None = None) -> OnlineResult:
    """Run GRPO in this process, or in all processes of its group if it was started in one; resumes the same run exactly
    if it was stopped. Raises InputError."""
    with ExitStack() as held, one_thread(), listening() as stop:
        group = RankGroup.join(config.distributed, held)
        return _Run(OnlineRun(config, "grpo", env, held, stop, checkpoint, group), stop).play()


@dataclass
class _Episode:
    rows: list[dict[str, np.ndarray]]
    actions: list[torch.Tensor]
    log_probs: list[torch.Tensor]
    score: float  # 1 for success, 0 otherwise; the return if the world does not report success


class _Run(OnPolicyRun):
    def __init__(self, run: OnlineRun, stop: StopRequest) -> None:
        self._grpo_settings = run.config.learning.grpo
        check_shared("learning.grpo.groups", self._grpo_settings.groups, run.group)
        self.grpo = GRPO(self._grpo_settings, run.policy_view, run.group)
        super().__init__(run, stop, self._grpo_settings, self.grpo)
        self._judged, self._iterations_without_group = run.spec.judged, 0
        groups, limit = self._grpo_settings.group_size, self._grpo_settings.episode_steps
        world = run.open_world()
        rank, size = run.group.rank, run.group.size
        self.world = Explorer(world, run.config.seed, rank, size, self.episodes // size, groups, limit, run.keeper())

    @property
    def _measures_start(self) -> bool:
        return super()._measures_start or self._grpo_settings.kl_weight > 0

    def _iterate(self, rng: np.random.Generator) -> dict[str, float]:
        """Play groups of episodes with the current policy, and learn from them."""
        kept, of_episodes, scores = list[_Episode](), list[float](), list[np.ndarray]()
        mine = {
            number: self._play_group(number)
            for number in range(self.group.rank, self._grpo_settings.groups, self.group.size)
        }
        for _, episodes in sorted(each for ours in self._gathered(mine) for each in ours.items()):
            scores.append(np.array([episode.score for episode in episodes]))
            relative = group_advantages(
                scores[-1], self._judged, self._grpo_settings.keep_low, self._grpo_settings.keep_high
            )
            if relative is not None:
                kept += episodes
                of_episodes += relative.tolist()
        share = len(kept) / (self._grpo_settings.groups * self._grpo_settings.group_size)
        shown = {"grpo/groups_kept": share, "grpo/mean_reached": float(np.mean(scores))}
        self._say_if_alike(bool(kept))
        if not kept:
            return shown
        decisions = PlayedDecisions(
            stacked([row for episode in kept for row in episode.rows]),
            torch.cat([chunk for episode in kept for chunk in episode.actions]),
            torch.cat([log_prob for episode in kept for log_prob in episode.log_probs]),
        )
        self._remember_states(decisions.observations)
        start, far = self._divergence_from_start(decisions)
        shown |= far
        if self.ended is not None:
            return shown
        lengths = torch.tensor([len(episode.rows) for episode in kept])
        # Episodes have equal weight, whatever their number of decisions: failures are the longest, and would dominate
        # the loss.
        weighted = torch.tensor(of_episodes) * lengths.float().mean() / lengths
        advantages = weighted.repeat_interleave(lengths)
        played = Grouped(decisions.observations, decisions.actions, decisions.log_probs, advantages, start)
        return {**shown, **self.grpo.learn(played, self.progress, rng)}

    def _play_group(self, number: int) -> list[_Episode]:
        random = self._random(number)
        return [self._play_one(random) for _ in range(self._grpo_settings.group_size)]

    def _play_one(self, random: torch.Generator) -> _Episode:
        """Play one episode with the current policy."""
        episode, total = _Episode([], [], [], 0.0), 0.0
        while True:
            row = self.view.look(self.world.observation)
            chunk, log_prob, actions = self._decide(stacked([row]), [random])
            after, ended = self.world.step(actions[0])
            episode.rows.append(row)
            episode.actions.append(chunk)
            episode.log_probs.append(log_prob)
            self._count_step(after.actions, ended)
            total += after.reward
            if ended is not None:
                episode.score = float(bool(ended.success)) if self._judged else total
                return episode

    def _say_if_alike(self, any_kept: bool) -> None:
        self._iterations_without_group = 0 if any_kept else self._iterations_without_group + 1
        if self._iterations_without_group == _PATIENCE:
            what = "all succeed or all fail" if self._judged else "all have the same return"
            logger.warning(
                "In the last %d iterations there was no group to learn from: its episodes %s. More noise "
                "(learning.grpo.noise, or the head's deviation), or a task of another difficulty, would change that.",
                _PATIENCE,
                what,
            )
