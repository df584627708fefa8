"""`atlas learn sac` in one process: each decision in the world is followed by the updates that are due."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import torch

from atlas.config import Config, SacBaseConfig
from atlas.learning.explorer import EpisodeLog, Explorer
from atlas.learning.online_run import OnlineRun
from atlas.learning.rank_group import RankGroup, one_device
from atlas.learning.returns import OnlineResult
from atlas.learning.run_parts import View
from atlas.learning.sac_learner import Piece, SacLearner
from atlas.rollout.transitions import Transition
from atlas.system.process_control.threads import one_thread
from atlas.training.guards.signals import Interrupted, StopRequest, listening


class BehaviourPolicy:
    """Chooses the actions while learning: uniformly random ones at first, then samples of the policy.

    Its random numbers depend on the episode and the decision only, so that a resumed run draws the same ones.
    """

    def __init__(self, view: View, settings: SacBaseConfig, seed: int, actor: int = 0) -> None:
        self._view, self._settings, self._seed = view, settings, [seed, 6, actor]
        self._random, self._uniform = torch.Generator(view.device), np.random.default_rng()

    def begin(self, episode: int) -> None:
        self._uniform = np.random.default_rng([*self._seed, episode])
        self._random.manual_seed(int(self._uniform.integers(2**62)))

    def exploring(self, steps: int) -> bool:
        return steps < self._settings.random_steps

    def act(self, row: dict[str, np.ndarray], steps: int) -> np.ndarray:
        """Scaled actions [A] after this many steps."""
        if self.exploring(steps):
            return self._view.at_random(row, self._uniform)
        return self._view.act(row, self._random)


def piece_of(first: dict[str, np.ndarray], scaled: np.ndarray, after: Transition, view: View) -> Piece:
    """A piece of one decision, with the actions as the world executed them. first: {} if it continues another."""
    executed = view.executed(torch.from_numpy(scaled)[None]).numpy()
    seen_then = {name: values[None] for name, values in view.look(after.next_observation).items()}
    over = after.terminated or after.truncated
    rewards = np.array([after.reward], np.float32)
    return Piece(first, executed, rewards, seen_then, len(after.actions), after.terminated, over)


def learn_here(config: Config, env: str, checkpoint: str | None = None, name: str = "sac") -> OnlineResult:
    """Run SAC, acting and learning in turn; resumes the same run if it was stopped. Raises InputError.

    name: of the settings: `sac`, or `residual` for a correction of the checkpoint's policy.
    """
    with ExitStack() as held, one_thread(), listening() as stop:
        group = RankGroup(device=one_device(config.distributed))
        run = OnlineRun(config, name, env, held, stop, checkpoint, group)
        learner = SacLearner(run)
        return _Interleaved(run, learner, stop).play()


class _Interleaved:
    def __init__(self, run: OnlineRun, learner: SacLearner, stop: StopRequest) -> None:
        self.stop = stop
        assert isinstance(run.settings, SacBaseConfig)
        self.run, self.learner, self.settings, self.view = run, learner, run.settings, run.view
        self.log = EpisodeLog()
        self.log.steps, self.log.episodes = learner.steps, learner.episodes
        self.board = run.tracker("actor", learner.steps)
        world, limit = run.open_world(exploring=True), run.settings.episode_steps
        self.world = Explorer(world, run.config.seed, first=learner.episodes, limit=limit, keep=run.keeper())
        self.behaviour = BehaviourPolicy(run.view, run.settings, run.config.seed)

    def play(self) -> OnlineResult:
        before, learner, settings = self.run.before(), self.learner, self.settings
        if self.run.start_is_unjudged:
            learner.look()  # the initial policy may remain the best
        saved = learner.steps
        begun = time.monotonic() - learner.seconds
        self.behaviour.begin(self.world.episodes)
        first = self.view.look(self.world.observation)
        row = first
        while not learner.done:
            if self.stop.signal is not None:
                learner.episodes, learner.seconds = self.world.episodes, time.monotonic() - begun
                learner.save({})
                raise Interrupted(self.stop.signal)
            scaled = self.behaviour.act(row, learner.steps)
            after, ended = self.world.step(self.view.in_units(scaled))
            learner.take(piece_of(first, scaled, after, self.view))
            self.log.decided(after.actions)
            learner.learn(learner.owed)
            if learner.steps - learner.looked >= settings.eval_interval:
                paused = time.monotonic()
                learner.look()
                begun += time.monotonic() - paused
            first = {}
            if ended is not None:
                self.board.step = learner.steps
                self.board.log(self.log.ended(ended, self.behaviour.exploring(learner.steps), learner.replay.decisions))
                learner.episodes, learner.seconds = self.world.episodes, time.monotonic() - begun
                if learner.steps - saved >= settings.save_interval:
                    saved = learner.steps
                    learner.save({})
                self.behaviour.begin(self.world.episodes)
                first = self.view.look(self.world.observation)
            row = self.view.look(self.world.observation)
        seconds = time.monotonic() - begun
        if not learner.evaluated:
            learner.look()
        learner.save({})
        done = learner.steps, self.world.episodes, learner.sac.updates, seconds, learner.ended
        return self.run.conclude(before, *done, policy_updates=learner.policy_updates)
