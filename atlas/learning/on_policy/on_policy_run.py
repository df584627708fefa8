"""A run of on-policy learning: play, learn, evaluate, save, and repeat."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from atlas.config import OnPolicyConfig
from atlas.errors import InputError
from atlas.learning.boards.experience_map import Observations
from atlas.learning.boards.judged_episodes import Judge
from atlas.learning.explorer import Ended, EpisodeLog
from atlas.learning.on_policy.clipped_learning import ClippedLearner, PlayedDecisions, StartPolicy, divergence_from
from atlas.learning.online_run import OnlineRun
from atlas.learning.rank_group import RankGroup
from atlas.learning.returns import OnlineResult
from atlas.system.tensors import load_nested, save_nested
from atlas.training.guards.signals import Interrupted, StopRequest

logger = logging.getLogger(__name__)

_LEARNER, _WORLDS = "learner.safetensors", "worlds.safetensors"
Part = TypeVar("Part")


class OnPolicyRun(ABC):
    """A run in one process, or in several that learn as one; it resumes the same run if that was stopped."""

    def __init__(self, run: OnlineRun, stop: StopRequest, settings: OnPolicyConfig, learner: ClippedLearner) -> None:
        self.run, self.stop, self.settings, self.view, self.learner = run, stop, settings, learner.view, learner
        self.group = learner.group
        self._events = list[tuple[np.ndarray, Ended | None]]()  # of this process's worlds, in the current iteration
        run.policy.eval()  # so that log-probabilities are the same while playing and while learning
        # The policy is still the initial one here, even if the run is resumed.
        self._start = StartPolicy(learner.view) if self._measures_start else None
        self.steps, self.rounds, self.episodes, self.seconds = 0, 0, 0, 0.0
        self.ended: str | None = None  # the reason, if it ended before all its steps
        self._played_at = time.monotonic()
        self._first: Observations | None = None
        self._last: Observations | None = None
        self._looked: int | None = None  # the steps at the last evaluation
        self._resumed: Path | None = None  # the checkpoint from which the run resumes
        if (found := run.latest()) is not None:
            folder, facts = found
            self._resumed, self._looked = folder, facts.get("looked")
            learner.load_state_dict(load_nested(folder / _LEARNER))
            self.steps, self.rounds, self.seconds = facts["steps"], facts["rounds"], facts["seconds"]
            self.episodes, self.ended = facts["episodes"], facts["ended"]
        self.log = EpisodeLog()
        self.log.steps, self.log.episodes = self.steps, self.episodes
        self.board, self.learner_board = run.tracker("actor", self.steps), run.tracker("learner", learner.updates)

    @property
    def _measures_start(self) -> bool:
        return self.settings.start_kl_limit is not None

    @abstractmethod
    def _iterate(self, rng: np.random.Generator) -> dict[str, float]:
        """Play with the current policy and learn from that, with these random numbers; return the metrics."""

    # ---- the loop --------------------------------------------------------------------------------------------

    def play(self) -> OnlineResult:
        before, saved = self.run.before(), self.steps
        looked = self.steps if self._looked is None else self._looked
        if self.run.start_is_unjudged:
            self._look()  # the initial policy may remain the best
        begun = time.monotonic() - self.seconds
        while self.steps < self.settings.steps and self.ended is None:
            shown = self._iterate(np.random.default_rng([self.run.config.seed, 7, self.rounds]))
            self.rounds += 1
            self._show(shown)
            if self.steps - looked >= self.settings.eval_interval:
                self._looked = looked = self.steps
                paused = time.monotonic()
                self._look()
                begun += time.monotonic() - paused
            self.seconds = time.monotonic() - begun
            signal = next((each for each in self.group.gathered(self.stop.signal) if each is not None), None)
            if signal is not None or self.steps - saved >= self.settings.save_interval:
                saved = self.steps
                self._save()
            if signal is not None:
                raise Interrupted(signal)
        if looked < self.steps and self.ended is None:
            self._look()
        self._save()
        return self.run.conclude(before, self.steps, self.log.episodes, self.learner.updates, self.seconds, self.ended)

    def _look(self) -> None:
        """Evaluate the policy, and log the results."""
        self.learner_board.step = self.learner.updates
        self.run.look(self.learner_board, self.steps, self._judge, self._visited_states)

    @property
    def _judge(self) -> Judge | None:
        """The judge that predicts returns, if there is one."""
        return None

    def _visited_states(self, count: int) -> dict[str, Observations]:
        """The states seen in the first iteration since the run was started or resumed, and in the last."""
        parts = {} if self._first is None else {"the first iteration": self._first}
        if self._last is not None:
            parts["the last iteration"] = self._last
        return {name: _subset(observations, count // 2) for name, observations in parts.items()}

    def _remember_states(self, observations: Observations) -> None:
        """Keep states of an iteration for the map."""
        most = self.run.config.logging.media.vis_dataset.frames
        if self._first is None:
            self._first = _subset(observations, most)
        else:
            self._last = _subset(observations, most)

    @property
    def progress(self) -> float:
        return min(1.0, self.steps / self.settings.steps)

    def _show(self, shown: dict[str, float]) -> None:
        self.learner_board.step = self.learner.updates
        counts = {"learner/update_steps": self.learner.updates, "learner/skipped_updates": self.learner.skipped}
        self.learner_board.log({**shown, **counts})

    def _save(self) -> None:
        facts = {
            "steps": self.steps,
            "rounds": self.rounds,
            "episodes": self.log.episodes,
            "seconds": self.seconds,
            "ended": self.ended,
            "looked": self._looked,
        }
        worlds = self._worlds_stand()

        def write(folder: Path) -> None:
            save_nested(folder / _LEARNER, self.learner.state_dict())
            if worlds:
                save_nested(folder / _WORLDS, worlds)

        self.run.save(facts, write)

    def _worlds_stand(self) -> dict[int, dict[str, Any]]:
        """The states from which the worlds of all processes can resume, by number; {} if they are between episodes."""
        return {}

    def _worlds_stood(self) -> dict[int, dict[str, Any]]:
        """The result of `_worlds_stand` in the checkpoint from which the run resumes."""
        file = None if self._resumed is None else self._resumed / _WORLDS
        return dict(load_nested(file)) if file is not None and file.exists() else {}

    # ---- what both algorithms do ---------------------------------------------------------------------------------

    def _divergence_from_start(self, decisions: PlayedDecisions) -> tuple[torch.Tensor | None, dict[str, float]]:
        """The log-probabilities [T] of decisions under the initial policy, if they are needed, and the divergence from
        it as a metric. Ends the run if the current policy is farther from it than `start_kl_limit`."""
        if self._start is None:
            return None, {}
        log_probs = self._start.log_probs(decisions)
        limit, divergence = self.settings.start_kl_limit, float(divergence_from(log_probs, decisions.log_probs).mean())
        if limit is not None and divergence > limit:
            self.ended = (
                f"the policy ran away: its KL divergence from the policy of the start is {divergence:.3g}, more than "
                f"learning.{self.learner.name}.start_kl_limit ({limit:g})"
            )
            logger.warning("After %d steps %s; the best policy so far is kept.", self.steps, self.ended)
        return log_probs, {f"{self.learner.name}/start_kl": divergence}

    def _random(self, number: int) -> torch.Generator:
        """The generator for the world, or the group of episodes, of this number in the current iteration; the same for
        any number of processes."""
        generator = torch.Generator(self.view.device)
        return generator.manual_seed(hash_of(self.run.config.seed, self.rounds, number))

    def _count_step(self, actions: np.ndarray, ended: Ended | None) -> None:
        """Count executed actions [n, A], and an episode that ended. A single process logs at once, several later."""
        if self.group.size > 1:
            self._events.append((actions, ended))
            return
        self.steps += len(actions)
        self.log.decided(actions)
        if ended is not None:
            self.board.log(self.log.ended(ended, False, 0), self.log.steps)

    def _gathered(self, part: Part) -> list[Part]:
        """Gather the parts of all processes, by rank, and count all their steps and episodes."""
        begun, self._played_at = self._played_at, time.monotonic()
        found = self.group.gathered((part, self._events))
        steps = sum(len(actions) for _, events in found for actions, _ in events)
        speed = steps / max(time.monotonic() - begun, 1e-9)
        for actions, ended in (event for _, events in found for event in events):
            self.steps += len(actions)
            self.log.decided(actions)
            if ended is not None:
                self.board.log({**self.log.ended(ended, False, 0), "actor/steps_per_second": speed}, self.log.steps)
        self._events = []
        return [each for each, _ in found]

    @torch.no_grad()
    def _decide(
        self, observations: Observations, random: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Sample chunks [B, H, A], each with a world's own random numbers; also give their log-probabilities [B], and
        the actions float32 [B, H, A] in the worlds' units."""
        distribution = self.view.distribution(observations)
        chunks, _ = distribution.sample(random)
        # As it will be looked up, also where squashing lost digits
        log_probs, chunks = distribution.log_prob(chunks).cpu(), chunks.cpu()
        return chunks, log_probs, self.view.in_units(chunks.flatten(1).numpy())


def _subset(observations: Observations, count: int) -> Observations:
    """At most `count` of the rows, evenly spaced."""
    total = len(next(iter(observations.values())))
    rows = torch.linspace(0, total - 1, min(count, total)).long()
    return {name: values[rows].clone() for name, values in observations.items()}


def check_shared(key: str, count: int, group: RankGroup) -> None:
    """Raises InputError if this many cannot be shared evenly among the processes."""
    if count % group.size:
        more = -(-count // group.size) * group.size
        raise InputError(f"{key} is {count}, and {group.size} processes share them: such as {key}={more}.")


def stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Rows stacked into columns."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def hash_of(seed: int, *numbers: int) -> int:
    """A generator's seed, from the run's seed and some numbers."""
    return int(np.random.default_rng([seed, 8, *numbers]).integers(2**62))
