"""The learning half of SAC: what actors send goes into the replay, and so many updates are made as are owed for it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas.config import SacConfig
from atlas.data.formats import open_dataset
from atlas.errors import InputError
from atlas.learning.experience_replay import Replay, draw_mixed
from atlas.learning.online_run import OnlineRun
from atlas.learning.policy_view import PolicyView
from atlas.learning.sac import SoftActorCritic
from atlas.system.tensors import load_nested, save_nested
from atlas.tracking import RunTracker

logger = logging.getLogger(__name__)

_LEARNER, _REPLAY = "learner.safetensors", "replay.safetensors"


@dataclass(frozen=True)
class Piece:
    """T decisions of one episode, one after another."""

    first: dict[str, np.ndarray]  # what was seen before them; {}: they follow on the piece before
    actions: np.ndarray  # float32 [T, A], scaled
    rewards: np.ndarray  # float32 [T]
    seen_then: dict[str, np.ndarray]  # [T, ...] each, after each
    steps: int  # in the environment
    terminated: bool
    over: bool  # the episode, or what is sent of it: the next piece says what is seen first


def demonstrations_of(path: str, view: PolicyView, instructions: tuple[str, ...]) -> Replay:
    """Recorded episodes as decisions: the last of each ends the task with the reward 1, all others have none.

    Raises InputError for a dataset whose proprio, actions or instructions are not the policy's, or a policy of chunks.
    """
    dataset, processor = open_dataset(path), view.policy.processor
    key, horizon = "learning.sac.demonstrations", processor.action_horizon
    if horizon != 1:
        raise InputError(f"{key} goes with policies of single actions, and this one gives {horizon} at once.")
    differing = [
        f"{what} {its}, not {own}" for what, own, its in processor.action_spec.differences(dataset.action_spec)
    ]
    if dataset.proprio_dim != processor.proprio_dim:
        differing.append(f"its proprio has {dataset.proprio_dim} numbers, not {processor.proprio_dim}")
    if unknown := [task for task in dataset.tasks if task not in instructions]:
        differing.append(f"its instruction '{unknown[0]}' is none of the world's")
    if differing:
        raise InputError(f"{key}: {path} does not fit the policy: {'; '.join(differing)}.")
    frames, numbers = int(dataset.lengths.sum()), dataset.numbers()
    replay = Replay(frames + len(dataset) + 1, view.columns, view.action_dim)
    for episode, task in enumerate(dataset.task_of.tolist()):
        rows = dataset.rows(episode)
        proprio, actions = np.asarray(numbers.proprio[rows]), view.scaled(np.asarray(numbers.actions[rows]))
        told = np.full((len(actions), 1), instructions.index(dataset.tasks[task]), np.uint8)
        # What is seen after the last action is not recorded; it has no value, since the task is over.
        then = {"proprio": np.concatenate([proprio[1:], proprio[-1:]]), "task": told}
        rewards = np.zeros(len(actions), np.float32)
        rewards[-1] = 1
        replay.begin({"proprio": proprio[0], "task": told[0]})
        replay.extend(actions, rewards, then, terminated=True)
    return replay


class SacLearner:
    """The replay, the networks and the counters; all of it is in a checkpoint."""

    def __init__(self, run: OnlineRun) -> None:
        assert isinstance(run.settings, SacConfig)
        self.run, self.settings = run, run.settings
        self.sac = SoftActorCritic(run.settings, run.view, run.config.seed, torch.device("cpu"))
        self.replay = Replay(run.settings.replay_capacity, run.view.columns, run.view.action_dim, run.about)
        told = run.settings.demonstrations
        self.demonstrations = None if told is None else demonstrations_of(told, run.view, run.spec.instructions)
        self.steps, self.decisions, self.episodes, self.seconds = 0, 0, 0, 0.0
        self._owing_since: int | None = None  # the decision from which on updates are owed
        self._timers: dict[str, float] = {"sample_replay_buffer": 0.0, "train": 0.0}
        self._logged = 0
        self._shown: dict[str, torch.Tensor] = {}
        self.begun_with = self._resume()
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
        """Updates that are to be made by now."""
        if self._owing_since is None:
            return 0
        return int((self.decisions - self._owing_since) * self.settings.utd_ratio) - self.sac.updates

    @property
    def done(self) -> bool:
        return self.steps >= self.settings.steps

    # ---- learning --------------------------------------------------------------------------------------------

    def learn(self, updates: int) -> None:
        """Make so many updates, and show what they were like."""
        for _ in range(updates):
            begun = time.perf_counter()
            draw = np.random.default_rng([self.run.config.seed, 5, self.sac.updates])
            settings = self.settings
            shown, share = self.demonstrations, settings.demonstration_share
            drawn = draw_mixed(self.replay, shown, settings.batch_size, share, draw, settings.n_step, settings.gamma)
            drawn_at = time.perf_counter()
            self._shown |= self.sac.update(drawn)
            self._timers["sample_replay_buffer"] += drawn_at - begun
            self._timers["train"] += time.perf_counter() - drawn_at
            if self.sac.updates % self.run.config.training.log_interval == 0:
                self._show()

    def _show(self) -> None:
        count = max(1, self.sac.updates - self._logged)
        timers = {f"timer/{name}": seconds / count for name, seconds in self._timers.items()}
        self._timers, self._logged = dict.fromkeys(self._timers, 0.0), self.sac.updates
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

    def look(self) -> None:
        """Evaluate the policy, and show how the values that the critics give are spread."""
        self.tracker.step = self.sac.updates
        for name in ("values", "targets"):
            if name in self._shown:
                self.tracker.log_histogram(f"sac/q_{name}", self._shown[name])
        self.run.look(self.tracker, self.steps)

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def save(self, more: dict[str, Any]) -> None:
        """more: of the actors, to go on by."""
        facts = {
            "steps": self.steps,
            "decisions": self.decisions,
            "episodes": self.episodes,
            "seconds": self.seconds,
            "owing_since": self._owing_since,
            **more,
        }
        self.tracker.flush()

        def write(folder: Path) -> None:
            self.replay.save(folder / _REPLAY)
            save_nested(folder / _LEARNER, self.sac.state_dict())

        self.run.save(self.steps, facts, write)

    def _resume(self) -> dict[str, Any]:
        """Go on from the newest checkpoint; its facts, {} where there is none."""
        found = self.run.latest()
        if found is None:
            return {}
        folder, facts = found
        self.replay.load(folder / _REPLAY)
        self.sac.load_state_dict(load_nested(folder / _LEARNER))
        self.steps, self.decisions, self.episodes = facts["steps"], facts["decisions"], facts["episodes"]
        self.seconds, self._owing_since, self._logged = facts["seconds"], facts["owing_since"], self.sac.updates
        logger.info("Going on after %d steps and %d updates, from %s", self.steps, self.sac.updates, folder)
        return dict(facts)
