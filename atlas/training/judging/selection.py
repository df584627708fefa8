"""The metric that chooses the best checkpoint, and the one that ends a run early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atlas.config import Config, EarlyStoppingConfig
from atlas.config.tracking_sections import rises
from atlas.environments.environment import EnvironmentSpec
from atlas.errors import InputError, did_you_mean
from atlas.types import ActionSpec


@dataclass(frozen=True)
class BestMetric:
    """The metric that chooses the best checkpoint."""

    name: str
    larger_is_better: bool

    def improves(self, value: float, best: float | None) -> bool:
        """Equal values count as better: of two equally good checkpoints, the later has been trained longer."""
        return best is None or (value >= best if self.larger_is_better else value <= best)


def choose_best_metric(config: Config, env: EnvironmentSpec | None) -> BestMetric:
    """The metric that the config names; 'auto' is success if there are rollouts, their rewards in a world that does not
    report success, and otherwise the validation loss. env: of the rollouts; None: there are none."""
    name, mode = config.model_management.best_model_metric, config.model_management.best_model_mode
    if name == "auto":
        name = "val/loss" if env is None else "eval/success_rate" if env.judged else "eval/mean_reward"
    return BestMetric(name, rises(name) if mode == "auto" else mode == "max")


class EarlyStopping:
    """Says to stop when `patience` values of a metric in a row have not improved by more than `min_delta`."""

    def __init__(self, config: EarlyStoppingConfig, best: float | None = None, since: int = 0) -> None:
        """best: the best value so far; since: how many values came after it."""
        self.best, self.since = best, since
        self._config = config
        self._rising = rises(config.metric) if config.mode == "auto" else config.mode == "max"

    def enough(self, metrics: Mapping[str, float]) -> bool:
        """Look at newly measured metrics; those without the metric do not count, and NaN counts as no improvement."""
        value = metrics.get(self._config.metric)
        if value is None:
            return False
        gain = math.inf if self.best is None else (value - self.best if self._rising else self.best - value)
        if gain > self._config.min_delta and not math.isnan(value):
            self.best, self.since = value, 0
        else:
            self.since += 1
        return self.since >= self._config.patience

    def reason(self) -> str:
        """The reason, for people."""
        best = "no number" if self.best is None else f"{self.best:.6g}"
        return f"{self._config.metric} has not improved on {best} for {self.since} values"


def check_metrics(
    config: Config, spec: ActionSpec, tasks: Sequence[str], env: EnvironmentSpec | None, validation: bool = True
) -> None:
    """Raises InputError if the config names a metric that training with these actions and tasks can never have.

    env: of the closed-loop evaluation during training, if there is one; validation: whether there are episodes for it.
    """
    measured = [f"val/{name}" for name in ("loss", *config.model.loss_terms(spec), *spec.error_names)]
    measured += [f"val/{task.replace(' ', '_')}/{name}" for task in tasks for name in spec.error_names]
    in_closed_loop = ["eval/success_rate", "eval/mean_reward", "eval/episode_length"]
    in_closed_loop += [f"eval/success_rate/{task.replace(' ', '_')}" for task in tasks]
    named = {"model_management.best_model_metric": config.model_management.best_model_metric}
    if config.training.early_stopping is not None:
        named["training.early_stopping.metric"] = config.training.early_stopping.metric
    for key, metric in named.items():
        if metric.startswith("eval/success_rate") and env is not None and not env.judged:
            raise InputError(f"{key} is {metric}, but '{env.name}' does not report success; use eval/mean_reward.")
        if metric in in_closed_loop and env is None:
            raise InputError(
                f"{key} is {metric}, but there are no rollouts during training: evaluation.episodes is 0, or the data "
                f"has no simulator. Choose a metric such as val/loss."
            )
        if metric in measured and not validation:
            raise InputError(
                f"{key} is {metric}, but there is no validation: each task has one episode, which is trained on."
            )
        if metric not in ("auto", *measured, *in_closed_loop):
            near = did_you_mean(metric, [*measured, *in_closed_loop])
            raise InputError(f"{key} is '{metric}', which training does not measure.{near}")
