"""Rounds of acting and imitating, from a trained policy to a better one, and whether it is better.

<run>/learning.json                what is learned from what; a run that was stopped goes on by it
      experience/round_01/         what was kept of the first round, in LIBERO's layout, to look at and to check
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
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from atlas.config import Config, RoundsConfig, SourceConfig
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.environments.catalog import environment_spec
from atlas.environments.rendering import RenderingGPU
from atlas.launch import acting_device, count_gpus, launch_ranks, plan_processes
from atlas.learning.boards.evaluation_board import MOST_PICTURES, VIDEOS
from atlas.learning.boards.held_out_results import HowPlayed, leave_page, twins_of, write_results
from atlas.learning.boards.part_trackers import finish_with
from atlas.learning.dagger import Dagger
from atlas.learning.explorer import Ended, summary_aliases
from atlas.learning.improvement import Improvement
from atlas.learning.online_run import settle
from atlas.learning.rft import SelfImitation
from atlas.policies.base import load_policy
from atlas.prepare import prepare
from atlas.registry import resolve_policy
from atlas.rollout.actor import Actor
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import PlannedEpisode, Purpose, plan_episodes
from atlas.rollout.evaluation import Evaluator, PlayedEpisode, check_policy_fits
from atlas.rollout.experience import Played
from atlas.rollout.filming.film_choice import film_order
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport, highlights
from atlas.rollout.verdicts.evidence import trained_on
from atlas.runs.run_directory import EVALUATIONS, RESULTS
from atlas.system.documents import read_json
from atlas.system.files import partial_folder, write_json
from atlas.system.locks import hold
from atlas.tracking import RunTracker
from atlas.train import run
from atlas.training.media.episode_logger import EpisodeLogger

logger = logging.getLogger(__name__)

ALGORITHMS = {"dagger": Dagger, "rft": SelfImitation}


class Algorithm(Protocol):
    """How experience is made, and which of it is worth imitating."""

    def play(self, evaluator: Evaluator, actor: Actor, episodes: Sequence[PlannedEpisode]) -> list[PlayedEpisode]: ...

    def keeps(self, played: PlayedEpisode) -> bool: ...


def learn(config: Config, name: str, checkpoint: str, env: str) -> Improvement:
    """Improve the policy of a checkpoint in a simulator; goes on where the same run was stopped.

    config: that of the checkpoint's run, whose demonstrations are trained on beside the experience; `run_name` is the
    new run's. name: of `ALGORITHMS`. Raises InputError.
    """
    with ExitStack() as held:
        return _Rounds(config, name, checkpoint, env, held).run()


class _Rounds:
    """A run of rounds: its folder, its world, and where it stands."""

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
        self.device = acting_device(config.distributed.cpu)
        gpu = RenderingGPU.of(self.device)
        self.evaluator = Evaluator(env, policy.processor.camera_size, config.evaluation.workers, gpu=gpu)
        held.callback(self.evaluator.close)
        self.tracker = RunTracker(self.folder, str(config.run_name), config.wandb, config.logging, from_experience=True)
        finish_with(held, self.tracker)
        self.board = EpisodeLogger(config.logging.media.episode_logger, self.tracker)
        self.steps, self.episodes = 0, 0  # in the environment, so far

    def _settle(self, checkpoint: str) -> None:
        """Note down what is learned from what; refuse to go on with something else. Raises InputError."""
        asked: dict[str, Any] = {
            "algorithm": self.name,
            "checkpoint": checkpoint,
            "env": self.env,
            "seed": self.config.seed,
            "settings": self.settings.model_dump(mode="json"),
        }
        settle(self.folder, asked, self.config)

    def run(self) -> Improvement:
        """All rounds that are missing, the control, and the comparison."""
        policy, kept = self.base, 0
        for number in range(1, self.settings.rounds + 1):
            kept += self._gather(number, policy)
            if kept:
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
        """Play a round's episodes and write those that are kept; how many they are."""
        place = self.folder / "experience" / f"round_{number:02d}"
        facts = place / "facts.json"
        if not facts.exists():
            begun = time.monotonic()
            first = (number - 1) * self.settings.episodes
            planned = plan_episodes(self.env, first + self.settings.episodes, "explore", self.config.seed)[first:]
            played = self.algorithm.play(self.evaluator, self._actor(policy), planned)
            kept = [p for p in played if self.algorithm.keeps(p)]
            with partial_folder(place) as partial:
                self._write(kept, partial)
                summary = self._summary("Train", [each.outcome for each in played])
                about = _facts(played, len(kept), time.monotonic() - begun)
                write_json(partial / "facts.json", {**about, "summary": summary})
                os.replace(partial, place)
        found = read_json(facts)
        self.steps += found["steps"]
        self.episodes += found["episodes"]
        self.tracker.step = self.steps
        self.tracker.log({f"actor/{name}": value for name, value in found["metrics"].items()})
        self.tracker.log({"actor/total_steps": self.steps, "actor/episode_count": self.episodes})
        self.tracker.log(found.get("summary", {}))  # rounds of earlier versions have none
        logger.info("Round %d: kept %d of %d episodes, in %s", number, found["kept"], found["episodes"], place)
        return int(found["kept"])

    def _summary(self, prefix: str, outcomes: Sequence[EpisodeOutcome]) -> dict[str, float]:
        """The names that other boards have; not how long episodes took, since several are played at a time."""
        horizon = environment_spec(self.env).horizon
        return summary_aliases(
            prefix,
            [Ended(o.reward, o.length, o.success, not o.success and o.length >= horizon, None) for o in outcomes],
        )

    def _write(self, kept: Sequence[PlayedEpisode], folder: Path) -> None:
        """Write episodes in LIBERO's layout, a file an instruction."""
        sources = [Played(p.trace, p.outcome.instruction, p.handed_over or 0) for p in kept if p.trace is not None]
        recorded = dict(self.evaluator.record(sources, "rendering what is kept"))
        by_instruction: dict[str, list[int]] = {}
        for place, source in enumerate(sources):
            by_instruction.setdefault(source.instruction, []).append(place)
        env_args = {"env_name": self.env, "type": 1, "env_kwargs": {"learned_by": self.name}}
        for instruction, places in by_instruction.items():
            file = folder / f"{instruction.replace(' ', '_')}_demo.hdf5"
            write_libero_file(file, instruction, [recorded[place] for place in places], env_args)

    def _train(self, where: str, start: Path, steps: int, rounds: int | None) -> Path:
        """The policy that imitates from `start` on, in a run of its own. rounds: whose experience it sees beside the
        demonstrations; None: that of none."""
        folder = self.folder / where
        if (folder / RESULTS).exists():
            return Path(read_json(folder / RESULTS)["best_checkpoint"])
        data = self.config.data
        if rounds is not None:
            data = data.model_copy(update={"datasets": self._sources(), "balance": "weights"})
        training = self.config.training.model_copy(
            update={
                "start_from": str(start),
                "max_steps": steps,
                "num_epochs": None,
                "learning_rate": self.settings.learning_rate,
                "warmup_steps": self.settings.warmup_steps,
                "ema_decay": self.settings.ema_decay,
                "val_interval": steps,
            }
        )
        evaluation = self.config.evaluation.model_copy(update={"episodes": 0, "final_episodes": 0})
        checkpoint = self.config.checkpoint.model_copy(update={"save_interval": steps})
        wandb = self.config.wandb.model_copy(update={"enabled": False})
        update = {
            "output_dir": str(folder.parent),
            "run_name": folder.name,
            "seed": self.config.seed + (rounds or 0),
            "data": data,
            "training": training,
            "evaluation": evaluation,
            "checkpoint": checkpoint,
            "wandb": wandb,
        }
        return train_here_or_in_ranks(self.config.model_copy(update=update))

    def _sources(self) -> list[SourceConfig]:
        """The demonstrations and the experience so far, each with its share."""
        demonstrations = self.config.data.sources
        share = self.settings.experience_share
        weight = sum(source.weight for source in demonstrations) * share / (1 - share)
        return [*demonstrations, SourceConfig(path=str(self.folder / "experience"), weight=weight)]

    def _follow(self, number: int, policy: Path) -> None:
        """How good the policy is after a round, with films of three episodes."""
        episodes, step = self.config.learning.round_episodes, number * self.settings.steps
        if not episodes:
            return
        shown = self.board.due("selection")
        films = self.folder / VIDEOS / f"round_{number:02d}" if shown else None
        report = self._evaluate(policy, "selection", episodes, f"round_{number:02d}", films)
        self.tracker.log({**report.metrics(), **self._summary("Val", report.outcomes), "learner/update_steps": step})
        if shown:
            self.board.log(replace(report, step=self.tracker.step))

    # ---- evaluating ------------------------------------------------------------------------------------------

    def _evaluate(
        self, policy: Path, purpose: Purpose, episodes: int, name: str, films: Path | None = None
    ) -> EvaluationReport:
        """The outcomes of a policy, which stay in a file. films: where those of the best, median and worst go, of
        episodes that are played now."""
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
        """The report, which knows where the films are."""
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


def _facts(played: Sequence[PlayedEpisode], kept: int, seconds: float) -> dict[str, Any]:
    """What a round's episodes were like."""
    rewards, lengths = ([getattr(p.outcome, name) for p in played] for name in ("reward", "length"))
    actions = np.concatenate([p.trace.executed for p in played if p.trace is not None])
    return {
        "episodes": len(played),
        "steps": sum(lengths),
        "kept": kept,
        "metrics": {
            "episode_reward": float(np.mean(rewards)),
            "max_episode_reward": max(rewards),
            "min_episode_reward": min(rewards),
            "avg_episode_reward_10": float(np.mean(rewards[-10:])),
            "episode_length": float(np.mean(lengths)),
            "avg_episode_length_10": float(np.mean(lengths[-10:])),
            "avg_action_magnitude": float(np.linalg.norm(actions, axis=1).mean()),
            "steps_per_second": sum(lengths) / seconds,
        },
    }


def train_here_or_in_ranks(config: Config) -> Path:
    """Train a new run as `atlas train` does, on what its `distributed` section says; its best checkpoint."""
    plan = plan_processes(config.distributed, count_gpus(config.distributed))
    with ExitStack() as locks:
        prepared = prepare(config, None, locks)
        if plan.processes == 1:
            os.environ.update(plan.environment(os.environ))
            return run(prepared).best_checkpoint
        del prepared  # each rank opens the data for itself
        code = launch_ranks(["rank", str(config.run_dir)], plan)
    if code:
        raise RuntimeError(f"The training {config.run_dir} ended with exit code {code}; its log says why.")
    return Path(read_json(config.run_dir / RESULTS)["best_checkpoint"])
