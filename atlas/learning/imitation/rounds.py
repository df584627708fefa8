"""Rounds of acting and imitating, which improve a trained policy, and the comparison at the end.

<run>/learning.json                what is learned from what; a run that was stopped goes on by it
      experience/round_01/         what was kept of the first round, written as its episodes end, see RoundExperience
      rounds/round_01/             its training, a run like any other
      control/                     as many steps of plain imitation
      videos/round_01/             films of the best, median and worst episode of the evaluation after it
      evaluations/                 the outcomes of the policies before and after, and of the control
      best/policy/                 the better one of before and after
      results.json                 what `--json` prints, and what it is believed by
      report.html                  a page about it
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from atlas.config import Config, RoundsConfig, SourceConfig
from atlas.data import open_configured
from atlas.environments.catalog import environment_spec
from atlas.environments.rendering import RenderingGPU
from atlas.launch import acting_device
from atlas.learning.boards.evaluation_board import MOST_PICTURES, VIDEOS
from atlas.learning.boards.held_out_results import HowPlayed, leave_page, twins_of, write_results
from atlas.learning.boards.part_trackers import finish_with
from atlas.learning.imitation.dagger import Dagger
from atlas.learning.imitation.plain_imitation import imitate
from atlas.learning.imitation.rft import SelfImitation
from atlas.learning.imitation.round_experience import RoundExperience, aliases, numbers_in
from atlas.learning.improvement import Improvement
from atlas.learning.online_run import settle
from atlas.policies.base import load_policy
from atlas.prepare import record_default
from atlas.registry import resolve_policy
from atlas.rollout.actor import Actor
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import PlannedEpisode, Purpose, plan_episodes
from atlas.rollout.evaluation import Evaluator, check_policy_fits
from atlas.rollout.experience import Keeper, PlayedEpisode
from atlas.rollout.filming.film_choice import film_order
from atlas.rollout.recording import is_liberos
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport, highlights
from atlas.rollout.verdicts.evidence import trained_on
from atlas.runs.run_directory import EVALUATIONS
from atlas.system.files import partial_folder
from atlas.system.locks import hold
from atlas.tracking import RunTracker
from atlas.training.media.episode_logger import EpisodeLogger

logger = logging.getLogger(__name__)

ALGORITHMS = {"dagger": Dagger, "rft": SelfImitation}


class Algorithm(Protocol):
    """An algorithm decides how episodes are played, and which of them are imitated."""

    def play(self, evaluator: Evaluator, actor: Actor, episodes: Sequence[PlannedEpisode], keeper: Keeper) -> None: ...

    def keeps(self, played: PlayedEpisode) -> bool: ...


def learn(config: Config, name: str, checkpoint: str, env: str) -> Improvement:
    """Improve the policy of a checkpoint in a simulator; resumes the same run if it was stopped.

    config: that of the checkpoint's run, whose demonstrations are trained on together with the experience; `run_name`
    is the new run's. name: a key of `ALGORITHMS`. Raises InputError.
    """
    with ExitStack() as held:
        return _Rounds(config, name, checkpoint, env, held).run()


class _Rounds:
    """A run of rounds: its folder, its world and its progress."""

    def __init__(self, config: Config, name: str, checkpoint: str, env: str, held: ExitStack) -> None:
        self.config, self.name, self.env, self.folder = config, name, env, config.run_dir
        self.settings: RoundsConfig = getattr(config.learning, name)
        self.base = resolve_policy(checkpoint)
        self.algorithm: Algorithm = ALGORITHMS[name](self.settings, env)
        policy = load_policy(self.base)
        check_policy_fits(policy.processor, environment_spec(env))
        held.enter_context(hold(self.folder, f"the run {self.folder}"))
        leave_page(held, self.folder)
        self._settle(checkpoint)
        record_default(config.data)
        open_configured(config.data)  # so that unreadable data is an error before anything is played
        self.device = acting_device(config.distributed.cpu)
        gpu = RenderingGPU.of(self.device)
        self.evaluator = Evaluator(env, policy.processor.camera_size, config.evaluation.workers, gpu=gpu)
        held.callback(self.evaluator.close)
        self.tracker = RunTracker(self.folder, str(config.run_name), config.wandb, config.logging, from_experience=True)
        finish_with(held, self.tracker)
        self.board = EpisodeLogger(config.logging.media.episode_logger, self.tracker)
        self.steps, self.episodes = 0, 0  # in the environment, so far
        self._kept = dict[int, int]()  # {round: episodes}

    def _settle(self, checkpoint: str) -> None:
        """Record the run's setup; refuse to resume with another one. Raises InputError."""
        setup: dict[str, Any] = {
            "algorithm": self.name,
            "checkpoint": checkpoint,
            "env": self.env,
            "seed": self.config.seed,
            "settings": self.settings.model_dump(mode="json"),
        }
        settle(self.folder, setup, self.config)

    def run(self) -> Improvement:
        """Run the missing rounds, the control and the comparison."""
        policy = self.base
        for number in range(1, self.settings.rounds + 1):
            self._kept[number] = self._gather(number, policy)
            if any(self._kept.values()):
                policy = self._train(f"rounds/round_{number:02d}", policy, self.settings.steps, number)
            self._follow(number, policy)
        control = self._train("control", self.base, self.settings.rounds * self.settings.steps, None)
        reports = {
            what: self._evaluate(place, "report", self.config.learning.held_out_episodes, what)
            for what, place in (("before", self.base), ("after", policy), ("control", control))
        }
        improvement = Improvement(self.folder, self.env, reports, self.steps, self.episodes)
        self._keep_best(self.base if improvement.worse else policy)
        best = self.folder / "best"
        how = replace(self._how_played, dataset=trained_on(resolve_policy(self.base if improvement.worse else policy)))
        final = how.proven(reports["before" if improvement.worse else "after"], best)
        few, actor = self.config.evaluation.probe_episodes, self._actor(best)
        improvement = replace(improvement, twins=twins_of(self.folder, final, actor, few, self._outcomes, how))
        write_results(self.folder, improvement.to_dict(), final, improvement.twins)
        return improvement

    # ---- one round -------------------------------------------------------------------------------------------

    def _gather(self, number: int, policy: Path) -> int:
        """Play a round's missing episodes and keep the selected ones; return the number kept in the round."""
        place = self._round(number)
        experience = RoundExperience(place, self.env, self.name, self.algorithm.keeps)
        if experience.facts is None:
            first = (number - 1) * self.settings.episodes
            planned = plan_episodes(self.env, first + self.settings.episodes, "explore", self.config.seed)[first:]
            self.algorithm.play(self.evaluator, self._actor(policy), experience.missing(planned), experience)
            experience.finish()
        facts = experience.facts
        assert facts is not None
        self.steps += facts["steps"]
        self.episodes += facts["episodes"]
        self.tracker.step = self.steps
        self.tracker.log({f"actor/{name}": value for name, value in facts["metrics"].items()})
        self.tracker.log({"actor/total_steps": self.steps, "actor/episode_count": self.episodes})
        self.tracker.log(facts.get("summary", {}))  # rounds of earlier versions have none
        logger.info("Round %d: kept %d of %d episodes, in %s", number, facts["kept"], facts["episodes"], place)
        return int(facts["kept"])

    def _round(self, number: int) -> Path:
        return self.folder / "experience" / f"round_{number:02d}"

    def _train(self, where: str, start: Path, steps: int, rounds: int | None) -> Path:
        """Train the policy `start` in a run of its own. rounds: how many rounds' experience it sees besides the
        demonstrations; None: none."""
        data = self.config.data
        if rounds is not None:
            data = data.model_copy(update={"datasets": self._sources(rounds), "balance": "weights"})
        settings = self.settings
        training = {
            "learning_rate": settings.learning_rate,
            "warmup_steps": settings.warmup_steps,
            "ema_decay": settings.ema_decay,
        }
        seed = self.config.seed + (rounds or 0)
        return imitate(self.config, self.folder / where, start, steps, data, seed, training)

    def _sources(self, rounds: int) -> list[SourceConfig]:
        """The demonstrations and the experience of this many rounds, each with its share."""
        demonstrations = self.config.data.sources
        share = self.settings.experience_share
        weight = sum(source.weight for source in demonstrations) * share / (1 - share)
        if is_liberos(environment_spec(self.env)):  # the folder is one dataset
            return [*demonstrations, SourceConfig(path=str(self.folder / "experience"), weight=weight)]
        kept = {self._round(number): self._kept[number] for number in range(1, rounds + 1) if self._kept[number]}
        sources = [
            SourceConfig(path=str(place), weight=weight * count / sum(kept.values())) for place, count in kept.items()
        ]
        return [*demonstrations, *sources]

    def _follow(self, number: int, policy: Path) -> None:
        """Evaluate the policy after a round, with films of three episodes."""
        episodes, step = self.config.learning.round_episodes, number * self.settings.steps
        if not episodes:
            return
        shown = self.board.due("selection")
        films = self.folder / VIDEOS / f"round_{number:02d}" if shown else None
        report = self._evaluate(policy, "selection", episodes, f"round_{number:02d}", films)
        summary = aliases("Val", numbers_in(report.outcomes), environment_spec(self.env).horizon)
        self.tracker.log({**report.metrics(), **summary, "learner/update_steps": step})
        if shown:
            self.board.log(replace(report, step=self.tracker.step))

    # ---- evaluating ------------------------------------------------------------------------------------------

    def _evaluate(
        self, policy: Path, purpose: Purpose, episodes: int, name: str, films: Path | None = None
    ) -> EvaluationReport:
        """Evaluate a policy, or load the saved report of that. films: the folder for films of the best, median and
        worst episode, which are made only when the episodes are played."""
        file = self.folder / EVALUATIONS / f"{name}.json"
        if file.exists():
            return EvaluationReport.load(file)
        planned = plan_episodes(self.env, episodes, purpose, self.config.evaluation.seed)
        title = f"evaluating: {name}"
        played = self.evaluator.play(self._actor(policy), planned, record=films is not None, title=title)
        outcomes = [each.outcome for each in played]
        report = EvaluationReport(self.env, str(policy), tuple(outcomes), purpose, seed=self.config.evaluation.seed)
        report = self._how_played.proven(report, policy)
        report.save(file)
        return report if films is None else self._filmed(report, played, films)

    def _outcomes(self, actor: Actor, planned: Sequence[PlannedEpisode], title: str) -> list[EpisodeOutcome]:
        return [each.outcome for each in self.evaluator.play(actor, planned, title=title)]

    @property
    def _how_played(self) -> HowPlayed:
        return HowPlayed.configured(self.config.evaluation)

    def _filmed(self, report: EvaluationReport, played: Sequence[PlayedEpisode], folder: Path) -> EvaluationReport:
        """Make the films, and return the report with their paths."""
        traces = {each.outcome.seed: each.trace for each in played}
        orders = {
            outcome.seed: film_order(traces[outcome.seed], outcome, folder, rank, MOST_PICTURES)
            for rank, outcome in highlights(report.outcomes).items()
        }
        made = set(self.evaluator.film(list(orders.values()), "filming"))
        films = {seed: str(order.path) for seed, order in orders.items() if order.path in made}
        return replace(report, outcomes=tuple(replace(o, video=films.get(o.seed)) for o in report.outcomes))

    def _actor(self, policy: Path) -> ChunkExecutor:
        evaluation = self.config.evaluation
        loaded = load_policy(policy, device=self.device)
        return ChunkExecutor.configured(loaded, evaluation, self.env)

    def _keep_best(self, policy: Path) -> None:
        best = self.folder / "best"
        with partial_folder(best) as partial:
            shutil.copytree(resolve_policy(policy), partial / "policy")
            shutil.rmtree(best, ignore_errors=True)
            os.replace(partial, best)
