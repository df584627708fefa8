"""The common part of all runs of learning by reward: the folder, its boards, its evaluations and its result.

<run>/learning.json           what is learned from what; a run that was stopped goes on by it
      actor/, learner/        a board each: `actor/*` over steps, `sac/*` and others over updates
      checkpoints/            see learner_checkpoints.py
      best/policy/            the policy with the best evaluation
      start/policy/           that of before, where it is saved nowhere else
      learned/policy/         that of after, where it is worse and `best` is that of before
      experience/             episodes of learning that succeeded, if they are asked for
      control/                as many steps of plain imitation, where there are demonstrations
      evaluations/            the outcomes of the policies before and after, and of the control, on the same starts
      results.json            what `--json` prints, and what it is believed by
      report.html             a page about it
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from atlas.config import Config, OnlineConfig, dump_yaml
from atlas.environments.catalog import environment_spec
from atlas.environments.environment import Environment
from atlas.environments.rendering import rendering_beside
from atlas.errors import InputError
from atlas.learning.boards.evaluation_board import EvaluationBoard
from atlas.learning.boards.experience_map import DEMONSTRATIONS, ExperienceMap, Observations, demonstrated
from atlas.learning.boards.held_out_results import HowPlayed, leave_page, twins_of, write_results
from atlas.learning.boards.judged_episodes import Judge
from atlas.learning.boards.part_trackers import finish_with, part_tracker
from atlas.learning.control import control_policy
from atlas.learning.explorer import Ended, Keep, play_here, summary_aliases
from atlas.learning.imitation.kept_episodes import KeptEpisodes
from atlas.learning.learner_checkpoints import LearnerCheckpoints
from atlas.learning.policy_view import PolicyView, load_start
from atlas.learning.rank_group import RankGroup
from atlas.learning.returns import OnlineResult
from atlas.learning.run_parts import RESIDUAL, about, actor_of, begun_view, open_world
from atlas.policies.processor import PolicyProcessor
from atlas.registry import resolve_policy
from atlas.rollout.actor import Actor
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import PlannedEpisode, Purpose, plan_episodes
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.rollout.verdicts.evidence import trained_on
from atlas.runs.run_directory import EVALUATIONS, LEARNING
from atlas.system.documents import read_json
from atlas.system.file_store import CONFIG
from atlas.system.files import partial_folder, write_json, write_text
from atlas.system.locks import hold
from atlas.system.process_control.threads import one_thread
from atlas.tracking import RunTracker
from atlas.training.guards.signals import Interrupted, StopRequest

logger = logging.getLogger(__name__)

_START = "start"  # in the run's folder: the policy of before, where it is saved nowhere else
_LEARNED = "learned"  # that of after, where it has become worse


def settle(folder: Path, setup: dict[str, Any], config: Config) -> None:
    """Record the run's setup in its folder; refuse to resume with another setup. Raises InputError."""
    file = folder / LEARNING
    if file.exists() and (saved := read_json(file)) != setup:
        changed = [key for key in setup if saved.get(key) != setup[key]]
        differing = "; ".join(f"{key} was {saved.get(key)} and is {setup[key]}" for key in changed)
        raise InputError(f"{folder} learns something else: {differing}. Choose another run_name.")
    write_json(file, setup)
    write_text(folder / CONFIG, dump_yaml(config))


class OnlineRun:
    """A run's policy, folder and boards."""

    def __init__(
        self,
        config: Config,
        name: str,
        env: str,
        held: ExitStack,
        stop: StopRequest,
        checkpoint: str | None = None,
        group: RankGroup | None = None,
    ) -> None:
        """checkpoint: of the initial policy; None: new weights. group: the processes that learn as one; the first of
        them writes. Raises InputError."""
        self._stop, self.group = stop, group or RankGroup()
        self.config, self.name, self.env, self.folder = config, name, env, config.run_dir
        self.settings: OnlineConfig = getattr(config.learning, name)
        self.spec = environment_spec(env)
        self.checkpoint = checkpoint
        self.view = begun_view(config, name, env, checkpoint)
        self.policy = self.view.policy.to(self.group.device)
        if self.group.main:
            held.enter_context(hold(self.folder, f"the run {self.folder}"))
            leave_page(held, self.folder)
        setup = {
            "algorithm": name,
            "checkpoint": checkpoint,
            "env": env,
            "seed": config.seed,
            "settings": self.settings.model_dump(mode="json", exclude=_MAY_CHANGE),
            "model": config.model.model_dump(mode="json"),
        }
        if checkpoint is not None:
            setup["execute"] = self.view.execute
            if (margin := self.policy.processor.scaling.proprio_margin) is not None:
                setup["proprio_margin"] = margin
        if self.group.main:
            settle(self.folder, setup, config)
        self.group.gathered(None)  # what the first process refuses, the others do not begin
        self._held, self._world = held, list[Environment]()
        self._checkpoints = LearnerCheckpoints(self.folder, self.policy, self.group.size)
        self._kept = KeptEpisodes(self.folder / "experience", env, name)
        self._boards: tuple[EvaluationBoard, ExperienceMap] | None = None
        self._demonstrated: Observations | None = None
        # A run from a checkpoint may fall back to these weights.
        own = self.policy.own_state_dict() if checkpoint is not None else {}
        self._begun_with = {name: tensor.detach().clone() for name, tensor in own.items()}
        self.between_episodes: Callable[[], None] = lambda: None  # called before each episode of an evaluation
        self.best: list[float] | None = None  # the success rate and the mean reward of the best policy so far

    @property
    def policy_view(self) -> PolicyView:
        """The view of a run that trains the policy itself."""
        assert isinstance(self.view, PolicyView)
        return self.view

    @property
    def about(self) -> str:
        """Facts that a replay or an actor must agree with."""
        return about(self.policy, self.env)

    def tracker(self, part: str, step: int) -> RunTracker:
        """The board of the actor or the learner: a folder of its own, and in wandb a run of one group."""
        tracker = part_tracker(self.config, part, step, self.group.main)
        finish_with(self._held, tracker)
        return tracker

    def open_world(self, exploring: bool = False) -> Environment:
        """An environment in this process, closed at the end of the run. exploring: with what the critics get."""
        with rendering_beside(self.group.device):
            env = open_world(self.env, self.view, self.config, exploring and self.name == RESIDUAL)
        self._held.callback(env.close)
        return env

    @property
    def _critics_see_objects(self) -> bool:
        """Whether the critics see more than the policy."""
        return self.name == RESIDUAL and self.config.learning.residual.object_positions

    def actor(self) -> ChunkExecutor:
        """An actor that takes the most likely actions of the current weights."""
        return actor_of(self.view, self.env)

    def keeper(self) -> Keep | None:
        """The receiver of successful episodes, if they are to be kept. Raises InputError for a world that does not
        report success."""
        if not self.settings.keep_successes:
            return None
        if not self.spec.judged:
            key = f"learning.{self.name}.keep_successes"
            raise InputError(f"{key} is true, but '{self.env}' does not tell success: there would be nothing to keep.")
        return self._kept.take

    # ---- evaluating ------------------------------------------------------------------------------------------

    def evaluate(
        self, purpose: Purpose, episodes: int, other: ChunkExecutor | None = None
    ) -> tuple[EvaluationReport, dict[str, float]]:
        """Evaluate the current policy, or another actor, on the starts of a purpose; return the report and its metrics.

        A signal ends held-out episodes at once, because nothing is lost by that. Raises Interrupted.
        """

        acting, planned = self.actor() if other is None else other, self._planned(purpose, episodes)
        played = self._play(acting, planned, f"playing {purpose} episodes", purpose == "report")
        report = EvaluationReport(
            self.env,
            str(self.folder),
            tuple(outcome for outcome, _ in played),
            purpose,
            seed=self.config.evaluation.seed,
        )
        return report, {**report.metrics(), **summary_aliases("Val", [ended for _, ended in played])}

    def _play(
        self, actor: Actor, planned: Sequence[PlannedEpisode], title: str, held_out: bool = True
    ) -> list[tuple[EpisodeOutcome, Ended]]:
        """Play each process's share, and gather all outcomes in the order of `planned`. Raises Interrupted."""

        def check_stop() -> None:
            self.between_episodes()
            if held_out and self._stop.signal is not None:
                raise Interrupted(self._stop.signal)

        if not self._world:
            self._world.append(self.open_world())
        was_training = self.policy.training
        self.policy.eval()
        with one_thread():
            mine = planned[self.group.rank :: self.group.size]
            ours = play_here(self._world[0], actor, mine, title if self.group.main else None, each=check_stop)
        numbers = {episode.seed: episode.number for episode in planned}
        played = [each for part in self.group.gathered(ours) for each in part]
        self.policy.train(was_training)
        return sorted(played, key=lambda each: numbers[each[0].seed])

    def _planned(self, purpose: Purpose, episodes: int) -> list[PlannedEpisode]:
        return plan_episodes(self.env, episodes, purpose, self.config.evaluation.seed)

    def look(
        self,
        tracker: RunTracker,
        steps: int,
        judge: Judge | None = None,
        visited: Callable[[int], Mapping[str, Observations]] = lambda count: {},
    ) -> None:
        """Evaluate the current policy on the episodes for selection, log the results, and keep it if it is the best so
        far.

        judge: predicts returns. visited: gives at most this many states seen while learning, by group.
        """
        report, metrics = self.evaluate("selection", self.settings.eval_episodes)
        tracker.log({**metrics, "train/step": tracker.step})  # their axis in wandb
        if self.group.main:
            self._show(replace(report, step=tracker.step), tracker, judge, visited)
        score = [report.success_rate, metrics["eval/mean_reward"]]
        logger.info("After %d steps: mean reward %.4g, success %.0f%%", steps, score[1], 100 * score[0])
        if self.best is None or score > self.best:
            self.best = score
            self.keep("best")

    def _show(
        self,
        report: EvaluationReport,
        tracker: RunTracker,
        judge: Judge | None,
        visited: Callable[[int], Mapping[str, Observations]],
    ) -> None:
        """Log the films of episodes, and the map of visited states."""
        media = self.config.logging.media
        if self._boards is None:
            self._boards = EvaluationBoard(media, self.folder, tracker), ExperienceMap(media.vis_dataset, tracker)
        films, experience = self._boards
        was_training = self.policy.training
        self.policy.eval()
        with one_thread():
            planned = self._planned(report.purpose, len(report.outcomes))
            films.show(report, planned, self._open_shown, self.view, judge)
            if experience.most_states:
                experience.show(
                    {**self._demonstration_states(experience.most_states // 3), **visited(experience.most_states)},
                    self._state,
                )
        self.policy.train(was_training)

    def _open_shown(self) -> Environment:
        """The world in which episodes are replayed; it reports object positions if the critics need them."""
        if not self._critics_see_objects:
            return self._world[0]
        if len(self._world) == 1:
            self._world.append(self.open_world(exploring=True))
        return self._world[1]

    def _demonstration_states(self, count: int) -> dict[str, Observations]:
        """The states of the demonstrations that the initial policy was trained on; {} if there are none."""
        if self.checkpoint is None or self._critics_see_objects:
            return {}
        if self._demonstrated is None:
            self._demonstrated = demonstrated(self.config, self.view, count) or {}
        return {DEMONSTRATIONS: self._demonstrated} if self._demonstrated else {}

    def _state(self, observations: Observations) -> torch.Tensor:
        return self.view.state(observations)

    def keep(self, name: str) -> None:
        """Save the current policy as <run>/<name>/policy."""
        if not self.group.main:
            return
        folder = self.folder / name
        with partial_folder(folder) as partial:
            self.policy.save_pretrained(partial / "policy")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)

    def before(self) -> EvaluationReport:
        """Evaluate the initial policy on the held-out starts, once per run."""
        file = self.folder / EVALUATIONS / "before.json"
        if self.group.from_first(file.exists()):
            return EvaluationReport.load(file)
        report, _ = self.evaluate("report", self.config.learning.held_out_episodes)
        if self._saved_nowhere:
            self.keep(_START)
        if self.group.main:
            place = self.folder / _START if self._saved_nowhere else self.checkpoint
            assert place is not None
            report = self._how_played.proven(report, place)
            report.save(file)
        return report

    @property
    def start_is_unjudged(self) -> bool:
        """Whether the run begins with a checkpoint's policy, which may remain the best, and has evaluated none yet."""
        return self.checkpoint is not None and self.best is None

    @property
    def _saved_nowhere(self) -> bool:
        """Whether the initial policy is new, or acts differently from the checkpoint's."""
        if self.checkpoint is None or self.name == RESIDUAL:
            return True
        own = PolicyProcessor.load(resolve_policy(self.checkpoint) / "processor.json")
        return own.scaling.proprio_margin != self.policy.processor.scaling.proprio_margin

    @property
    def _how_played(self) -> HowPlayed:
        imitated = trained_on(resolve_policy(self.checkpoint)) if self.checkpoint is not None else None
        return HowPlayed(self.view.execute, dataset=imitated)

    def conclude(
        self,
        before: EvaluationReport,
        steps: int,
        episodes: int,
        updates: int,
        seconds: float,
        ended: str | None = None,
        policy_updates: int | None = None,
    ) -> OnlineResult:
        """Evaluate the best policy on the held-out starts, and return the result. If the run has made the policy worse,
        the initial one replaces it. ended: the reason, if it ended before all its steps. policy_updates: the updates of
        the policy itself, as many as the control gets; None: all."""
        file, best, learned = (self.folder / name for name in (f"{EVALUATIONS}/after.json", "best", _LEARNED))
        if self.group.from_first(file.exists()):  # then the first process has written the best policy too
            after = EvaluationReport.load(file)
        else:
            place = learned if self.group.from_first(learned.exists()) else best
            self.policy.load_weights(place / "policy" / "model.safetensors")
            after, _ = self.evaluate("report", self.config.learning.held_out_episodes)
        self.group.gathered(None)  # all processes have written the episodes they keep
        if self.group.main:
            self._kept.finish()
        described = self.folder, self.name, self.env, before, after
        result = OnlineResult(*described, steps, episodes, updates, seconds, self.checkpoint, ended)
        if result.kept_before:
            if self.group.main and not learned.exists():
                os.replace(best, learned)
            self.policy.load_own_state_dict(self._begun_with)
            self.keep("best")
        how, main = self._how_played, self.group.main
        if main:
            how.proven(after, learned if result.kept_before else best).save(file)
        self.group.gathered(None)  # the best policy is there
        control, without = self._control(updates if policy_updates is None else policy_updates)
        result = replace(result, control=control, without_control=without)
        self.policy.load_weights(best / "policy" / "model.safetensors")
        kept_report = before if result.kept_before else after
        kept_report = how.proven(kept_report, best) if main else kept_report

        def play(actor: Actor, planned: Sequence[PlannedEpisode], title: str) -> list[EpisodeOutcome]:
            return [outcome for outcome, _ in self._play(actor, planned, title)]

        few, first = self.config.evaluation.probe_episodes, self.group.from_first
        result = replace(result, twins=twins_of(self.folder, kept_report, self.actor(), few, play, how, first, main))
        if main:
            write_results(self.folder, result.to_dict(), kept_report, result.twins)
        return result

    def _control(self, updates: int) -> tuple[EvaluationReport | None, str | None]:
        """Evaluate the control: its report, or the reason that there is none."""
        file, config = self.folder / EVALUATIONS / "control.json", self.config
        if self.group.from_first(file.exists()):
            return EvaluationReport.load(file), None
        control = control_policy(config, self.checkpoint, self.policy.processor, updates, self.group.size)
        if isinstance(control, str):
            return None, control
        policy = load_start(str(control), config.learning.proprio_margin).to(self.group.device).eval()
        actor = ChunkExecutor(policy, self.view.execute, environment=self.env)
        report, _ = self.evaluate("report", config.learning.held_out_episodes, actor)
        report = self._how_played.proven(report, control)
        report.save(file)
        return report, None

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def save(self, facts: dict[str, Any], write_learner: Callable[[Path], None]) -> None:
        """Keep a checkpoint; see `LearnerCheckpoints.save`. facts: "steps" among them."""
        if self.group.main:
            self._checkpoints.save(facts["steps"], {**facts, "best": self.best}, write_learner)

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The algorithm's part of the newest checkpoint, and its facts; see `LearnerCheckpoints.latest`."""
        found = self._checkpoints.latest()
        if found is not None:
            self.best = found[1]["best"]
        return found


_MAY_CHANGE = {
    "push_interval",
    "steps_per_message",
    "connect_timeout",
    "eval_interval",
    "save_interval",
    "keep_successes",
}
