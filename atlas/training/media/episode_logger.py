"""The episodes of an evaluation on the boards: how they ended, and films of three of them."""

from __future__ import annotations

from atlas.config import EpisodeLoggerConfig
from atlas.rollout.episode_plan import Purpose
from atlas.rollout.success_report import EvaluationReport, highlights
from atlas.tracking import RunTracker


class EpisodeLogger:
    """Shows every `interval`-th evaluation during training, starting with the first, and the final one.

    During training: the distributions `eval/return_distribution` and `eval/length_distribution` of the episodes, and
    films of the best, the median and the worst as `eval/video_best`, …; for the final evaluation: `eval/final/…`.
    """

    def __init__(self, config: EpisodeLoggerConfig, tracker: RunTracker) -> None:
        """config.interval counts evaluations; 0 shows none."""
        self._interval, self._tracker = config.interval, tracker
        self._evaluations = 0

    def due(self, purpose: Purpose) -> bool:
        """Whether the evaluation that begins now is to be shown; asked once for each, on every rank."""
        if purpose == "final" or not self._interval:
            return self._interval > 0
        self._evaluations += 1
        return (self._evaluations - 1) % self._interval == 0

    def log(self, report: EvaluationReport) -> None:
        """Log an evaluation and those of its `highlights` that were filmed, at the step of its policy."""
        section = "eval" if report.purpose == "selection" else f"eval/{report.purpose}"
        returns = [outcome.reward for outcome in report.outcomes]
        lengths = [outcome.length for outcome in report.outcomes]
        self._tracker.log_histogram(f"{section}/return_distribution", returns, step=report.step)
        self._tracker.log_histogram(f"{section}/length_distribution", lengths, step=report.step)
        for rank, outcome in highlights(report.outcomes).items():
            if outcome.video is not None:
                self._tracker.log_video(f"{section}/video_{rank}", outcome.video, step=report.step)
