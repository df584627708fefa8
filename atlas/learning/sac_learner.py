"""The learning half of SAC: experience goes into the replay, and the updates that are due for it are made."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas.config import ResidualSacConfig, SacBaseConfig
from atlas.learning.boards.experience_map import thirds
from atlas.learning.boards.judged_episodes import Judge
from atlas.learning.experience_replay import Replay, draw_mixed
from atlas.learning.online_run import OnlineRun
from atlas.learning.sac import SoftActorCritic
from atlas.system.tensors import load_nested, save_nested
from atlas.tracking import RunTracker

logger = logging.getLogger(__name__)

LEARNER, REPLAY = "learner.safetensors", "replay.safetensors"


@dataclass(frozen=True)
class Piece:
    """T decisions of one episode, one after another."""

    first: dict[str, np.ndarray]  # the observation before them; {}: they continue the piece before
    actions: np.ndarray  # float32 [T, A], scaled
    rewards: np.ndarray  # float32 [T]
    seen_then: dict[str, np.ndarray]  # [T, ...] each, after each
    steps: int  # in the environment
    terminated: bool
    over: bool  # the episode, or what is sent of it, ends here: the next piece has a `first`


class SacLearner:
    """The replay, the networks and the counters; all of it is in a checkpoint."""

    def __init__(self, run: OnlineRun) -> None:
        assert isinstance(run.settings, SacBaseConfig)
        self.run, self.settings = run, run.settings
        self.sac = SoftActorCritic(run.settings, run.view, run.config.seed, run.group.device)
        self.replay = Replay(
            run.settings.replay_capacity, run.view.columns, run.view.action_dim, run.about, run.settings.priority
        )
        demonstrations = run.settings.demonstrations
        self.demonstrations = None if demonstrations is None else run.view.demonstrations(demonstrations)
        self.steps, self.decisions, self.episodes, self.seconds = 0, 0, 0, 0.0
        self._owing_since: int | None = None  # the decision from which on updates are due
        self._timers: dict[str, float] = {"sample_replay_buffer": 0.0, "train": 0.0}
        self._logged = 0
        self._shown: dict[str, torch.Tensor] = {}
        self.ended: str | None = None  # the reason, if it ended before all its steps
        self.begun_with = self._resume()
        self.looked: int = self.begun_with.get("looked", self.steps)  # the steps at the last evaluation
        self._looked_updates = self.sac.updates if self.looked == self.steps else -1  # the updates then
        self.tracker: RunTracker = run.tracker("learner", self.sac.updates)

    # ---- experience ------------------------------------------------------------------------------------------

    def take(self, piece: Piece) -> None:
        if piece.first:
            self.replay.begin(piece.first)
        self.replay.extend(piece.actions, piece.rewards, piece.seen_then, piece.terminated, piece.over)
        self.steps += piece.steps
        self.decisions += len(piece.actions)
        if self._owing_since is None and self.steps >= self.settings.training_starts:
            self._owing_since = self.decisions

    @property
    def owed(self) -> int:
        """The number of updates that are due."""
        if self._owing_since is None:
            return 0
        return int((self.decisions - self._owing_since) * self.settings.utd_ratio) - self.sac.updates

    @property
    def policy_updates(self) -> int:
        """The number of the actor's updates so far."""
        ratio = self.settings.critic_actor_ratio
        return max(0, self.sac.updates // ratio - self.settings.critic_warmup // ratio)

    @property
    def done(self) -> bool:
        return self.steps >= self.settings.steps or self.ended is not None

    @property
    def evaluated(self) -> bool:
        """Whether the policy is the one of the last evaluation."""
        return (self.looked, self._looked_updates) == (self.steps, self.sac.updates)

    # ---- learning --------------------------------------------------------------------------------------------

    def learn(self, updates: int) -> None:
        """Make this many updates, and log their metrics."""
        for _ in range(updates):
            started = time.perf_counter()
            rng = np.random.default_rng([self.run.config.seed, 5, self.sac.updates])
            settings = self.settings
            demonstrations, share = self.demonstrations, settings.demonstration_share
            batch = draw_mixed(
                self.replay, demonstrations, settings.batch_size, share, rng, settings.n_step, settings.gamma
            )
            sampled_at = time.perf_counter()
            metrics = self.sac.update(batch.to(self.sac.device))
            self._shown |= metrics
            if batch.rows is not None and "errors" in metrics:
                self.replay.update_priorities(batch.rows, metrics["errors"][: len(batch.rows)].cpu().numpy())
            self._timers["sample_replay_buffer"] += sampled_at - started
            self._timers["train"] += time.perf_counter() - sampled_at
            if self.sac.updates % self.run.config.training.log_interval == 0:
                self._show()

    def _show(self) -> None:
        count = max(1, self.sac.updates - self._logged)
        timers = {f"timer/{name}": seconds / count for name, seconds in self._timers.items()}
        self._timers, self._logged = dict.fromkeys(self._timers, 0.0), self.sac.updates
        self._check_size()
        self.tracker.step = self.sac.updates
        self.tracker.log(
            {
                **{name: float(value) for name, value in self._shown.items() if name.startswith("sac/")},
                **timers,
                "timer/total": sum(timers.values()),
                "learner/update_steps": self.sac.updates,
                "learner/replay_buffer_size": self.replay.decisions,
                "learner/skipped_updates": self.sac.skipped,
            }
        )

    def _check_size(self) -> None:
        """End the run if the corrections of a frozen policy exceed their limit."""
        size, settings = self._shown.get("sac/residual_size"), self.settings
        if size is None or not isinstance(settings, ResidualSacConfig) or float(size) <= settings.size_limit:
            return
        self.ended = (
            f"the correction ran away: its mean size is {float(size):.3g} of the largest, more than "
            f"learning.residual.size_limit ({settings.size_limit:g}); a larger penalty holds it"
        )
        logger.warning("After %d steps %s. The best policy so far is kept.", self.steps, self.ended)

    def look(self) -> None:
        """Evaluate the policy, and log the distributions of the critics' values and targets."""
        self.looked, self._looked_updates, self.tracker.step = self.steps, self.sac.updates, self.sac.updates
        for name in ("values", "targets"):
            if name in self._shown:
                self.tracker.log_histogram(f"sac/q_{name}", self._shown[name].cpu())
        judge = Judge(self.sac, self.settings.gamma)
        self.run.look(self.tracker, self.steps, judge, lambda count: thirds(self.replay, count))

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def save(self, more: dict[str, Any]) -> None:
        """more: of the actors, to go on by."""
        facts = {
            "steps": self.steps,
            "decisions": self.decisions,
            "episodes": self.episodes,
            "seconds": self.seconds,
            "owing_since": self._owing_since,
            "ended": self.ended,
            "looked": self.looked,
            **more,
        }
        self.tracker.flush()

        def write(folder: Path) -> None:
            self.replay.save(folder / REPLAY)
            save_nested(folder / LEARNER, self.sac.state_dict())

        self.run.save(facts, write)

    def _resume(self) -> dict[str, Any]:
        """Go on from the newest checkpoint; its facts, {} where there is none."""
        found = self.run.latest()
        if found is None:
            return {}
        folder, facts = found
        self.replay.load(folder / REPLAY)
        self.sac.load_state_dict(load_nested(folder / LEARNER))
        self.steps, self.decisions, self.episodes = facts["steps"], facts["decisions"], facts["episodes"]
        self.seconds, self._owing_since, self._logged = facts["seconds"], facts["owing_since"], self.sac.updates
        self.ended = facts.get("ended")
        logger.info("Going on after %d steps and %d updates, from %s", self.steps, self.sac.updates, folder)
        return dict(facts)
