"""Logs an evaluation of learning: how its episodes ended, and films of three of them with values and densities."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from atlas.config import MediaConfig
from atlas.drawing.experience_plots import draw_decisions
from atlas.environments.environment import Environment
from atlas.learning.boards.judged_episodes import Decides, Judge, JudgedEpisode, play_judged
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.filming.film_choice import film_name
from atlas.rollout.success_report import EvaluationReport, highlights
from atlas.rollout.traces import FilmOrder, make_film
from atlas.system.safe_text import cause
from atlas.tracking import RunTracker
from atlas.training.media.episode_logger import EpisodeLogger

logger = logging.getLogger(__name__)

VIDEOS = "videos"  # in the run's folder
MOST_PICTURES = 60  # per film: rendering a picture takes almost as long as a step


class EvaluationBoard:
    """Shows, as in training, `eval/return_distribution`, `eval/length_distribution` and films of the best, median and
    worst episode, which are played once more for that. Values and densities are drawn into the films, and in the
    figures `eval/decisions_best`, ….

    If this fails, it is switched off with one warning, and learning goes on.
    """

    def __init__(self, media: MediaConfig, folder: Path, tracker: RunTracker) -> None:
        """folder: the run's."""
        self._media, self._folder, self._tracker = media, folder, tracker
        self._episodes = EpisodeLogger(media.episode_logger, tracker)
        self._off = False

    def show(
        self,
        report: EvaluationReport,
        planned: list[PlannedEpisode],
        open_world: Callable[[], Environment],
        view: Decides,
        judge: Judge | None,
    ) -> None:
        """Log an evaluation. report: its report, with the dashboard's step. planned: its episodes."""
        if not self._episodes.due(report.purpose) or self._off:
            return
        try:
            self._episodes.log(self._filmed(report, planned, open_world(), view, judge))
        except Exception as error:  # of any kind: drawing, a full disk, a world that does not draw
            self._off = True
            logger.warning("Films of evaluations are switched off: %s. Learning goes on.", cause(error).rstrip("."))

    def _filmed(
        self,
        report: EvaluationReport,
        planned: list[PlannedEpisode],
        env: Environment,
        view: Decides,
        judge: Judge | None,
    ) -> EvaluationReport:
        by_seed = {episode.seed: episode for episode in planned}
        films = dict[int, str]()
        for rank, outcome in highlights(report.outcomes).items():
            judged = play_judged(env, by_seed[outcome.seed], view, judge)
            films[outcome.seed] = str(self._film(judged, env, rank, report.step or 0))
            self._show_decisions(judged, rank, report.step)
        outcomes = tuple(replace(o, video=films.get(o.seed)) for o in report.outcomes)
        return replace(report, outcomes=outcomes)

    def _film(self, judged: JudgedEpisode, env: Environment, rank: str, step: int) -> Path:
        path = self._folder / VIDEOS / f"update_{step:08d}" / film_name(rank, judged.outcome)
        path.parent.mkdir(parents=True, exist_ok=True)
        outcome, configured = judged.outcome, self._media.action_logger.along_episodes
        curves = judged.curves("q_value" in configured, "action_probability" in configured)
        make_film(
            env, FilmOrder(path, judged.trace, outcome.instruction, outcome.verdict, MOST_PICTURES, curves=curves)
        )
        return path

    def _show_decisions(self, judged: JudgedEpisode, rank: str, step: int | None) -> None:
        configured = self._media.action_logger.along_episodes
        curves = judged.curves("q_value" in configured, "action_probability" in configured)
        if curves:
            outcome = judged.outcome
            title = f"The {rank} episode of the evaluation ({outcome.verdict}, reward {outcome.reward:.4g})"
            drawn = draw_decisions(curves, judged.trace.rewards, title)
            self._tracker.log_image(f"eval/decisions_{rank}", drawn, step=step)
