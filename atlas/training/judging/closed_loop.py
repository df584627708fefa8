"""Closed-loop evaluation during training, with the episodes distributed over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from atlas.config import EvaluationConfig
from atlas.environments.catalog import environment_spec
from atlas.environments.rendering import RenderingGPU
from atlas.rollout.actor import Actor, image_size_for
from atlas.rollout.episode_plan import PlannedEpisode, Purpose, plan_episodes
from atlas.rollout.evaluation import MOST_WORKERS, Evaluator
from atlas.rollout.experience import PlayedEpisode
from atlas.rollout.filming.film_choice import OVERVIEW, film_order, overview, worst_failures
from atlas.rollout.filming.film_compositions import OverviewOrder
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport, highlights
from atlas.runs.run_directory import EVALUATIONS
from atlas.system.process_control.cores import cores_of_rank
from atlas.training.media.episode_logger import EpisodeLogger

VIDEOS = "videos"  # in the run's folder, for the films of evaluations unless evaluation.record_path names another
_HIGHLIGHT_PICTURES = 60  # a picture takes almost as long as a step, so films of highlights leave out steps


class ClosedLoop:
    """Evaluates actors in one environment, whose processes start with the first evaluation and stay alive.

    Every evaluation writes the outcomes of its episodes into a file, and is shown by the logger when that is due.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        env: str,
        accelerator: Accelerator,
        run_dir: Path,
        logger: EpisodeLogger,
        beat: Callable[[str], None],
    ) -> None:
        """beat: called with what was done, again and again."""
        self.env, self.spec = env, environment_spec(env)
        self._config, self._accelerator = config, accelerator
        self._outcomes, self._logger = run_dir / EVALUATIONS, logger
        self._films = Path(config.record_path) / run_dir.name if config.record_path else run_dir / VIDEOS
        self._evaluator: Evaluator | None = None
        self._beat = beat

    def run(
        self,
        actor: Actor,
        purpose: Purpose,
        episodes: int,
        name: str,
        step: int,
        videos: int = 0,
        evidence: dict[str, Any] | None = None,
    ) -> EvaluationReport:
        """Every rank runs its share and gets the whole report; the main one writes it, makes the films, and logs.

        name, step: for the report: which policy it was, and how many optimizer steps it had been trained for.
        videos: how many of the first episodes are filmed completely, in addition to the highlights that are shown.
        evidence: goes into the report.
        """
        accelerator = self._accelerator
        shown = self._logger.due(purpose)
        planned = plan_episodes(self.env, episodes, purpose, self._config.seed)
        evaluator = self._started(actor)
        played = evaluator.play(
            actor,
            planned[accelerator.process_index :: accelerator.num_processes],
            record=shown or videos > 0,
            title="evaluating" if accelerator.is_main_process else None,
        )
        numbers = {episode.seed: episode.number for episode in planned}
        outcomes = sorted(gather_object([p.outcome for p in played]), key=lambda o: numbers[o.seed])
        report = EvaluationReport(
            self.env,
            name,
            tuple(outcomes),
            purpose,
            step,
            self._config.seed,
            evidence=evidence,
            tiers=environment_spec(self.env).tiers,
        )

        titles = {outcome.seed: f"episode_{i:03d}" for i, outcome in enumerate(outcomes[:videos])}
        if shown:
            titles |= {o.seed: f"{rank}_episode_{numbers[o.seed]:03d}" for rank, o in highlights(outcomes).items()}
        worst = {outcomes[place].seed for place in worst_failures(outcomes)} if videos else set[int]()
        # The traces of these few episodes are small: the main rank collects them, so that all films are on its disk.
        traced = gather_object([p for p in played if p.outcome.seed in titles or p.outcome.seed in worst])
        if accelerator.is_main_process:
            report.save(self._outcomes / f"{purpose}_step_{step:08d}.json")
            report = self._film(report, {p.outcome.seed: p for p in traced}, titles, videos)
        if shown:
            self._logger.log(report)
        return report

    def outcomes(self, actor: Actor, planned: Sequence[PlannedEpisode], title: str) -> list[EpisodeOutcome]:
        """Play episodes, spread over the ranks; every rank gets all outcomes, in the order of `planned`."""
        accelerator = self._accelerator
        mine = planned[accelerator.process_index :: accelerator.num_processes]
        played = self._started(actor).play(actor, mine, title=title if accelerator.is_main_process else None)
        numbered = [(episode.number, each.outcome) for episode, each in zip(mine, played, strict=True)]
        found = dict(gather_object(numbered))
        return [found[episode.number] for episode in planned]

    def close(self) -> None:
        if self._evaluator is not None:
            self._evaluator.close()

    def _started(self, actor: Actor) -> Evaluator:
        if self._evaluator is None:
            workers = self._config.workers or min(MOST_WORKERS, cores_of_rank())
            gpu = RenderingGPU.of(self._accelerator.device)
            self._evaluator = Evaluator(self.env, image_size_for(actor), workers, self._beat, gpu)
        return self._evaluator

    def _film(
        self, report: EvaluationReport, played: Mapping[int, PlayedEpisode], titles: Mapping[int, str], whole: int
    ) -> EvaluationReport:
        """Film the episodes that have a title (all by their seeds) into a separate folder for this evaluation.

        For the first `whole` episodes the film shows every step. The returned report knows where films are.
        """
        assert self._evaluator is not None and report.step is not None
        folder = self._films / f"{'' if report.purpose == 'selection' else report.purpose + '_'}step_{report.step:08d}"
        for old in folder.glob("*.mp4"):  # from the same evaluation, before training resumed at an earlier step
            old.unlink()
        orders = {}
        for number, outcome in enumerate(report.outcomes):
            if title := titles.get(outcome.seed):
                limit = None if number < whole else _HIGHLIGHT_PICTURES
                orders[outcome.seed] = film_order(played[outcome.seed].trace, outcome, folder, title, limit)
        together = _overview(folder / OVERVIEW, report.outcomes, played) if whole else []
        made = set(self._evaluator.film([*orders.values(), *together]))
        films = {seed: str(order.path) for seed, order in orders.items() if order.path in made}
        return replace(report, outcomes=tuple(replace(o, video=films.get(o.seed)) for o in report.outcomes))


def _overview(
    path: Path, outcomes: Sequence[EpisodeOutcome], played: Mapping[int, PlayedEpisode]
) -> list[OverviewOrder]:
    """Draw the overview of the worst failures, whose traces are all there."""
    worst = worst_failures(outcomes)
    orders = [film_order(played[outcomes[i].seed].trace, outcomes[i], path.parent, f"episode_{i:03d}") for i in worst]
    return overview(path, worst, [outcomes[i] for i in worst], orders)
