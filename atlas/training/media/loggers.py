"""Decides when each kind of media is logged, collects the ranks' shares, and switches off a kind that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from atlas.checkpoints.contents import random_state, set_random_state
from atlas.config import MediaConfig
from atlas.data.training_data import TrainingData
from atlas.drawing.prediction_plots import PlotLogger
from atlas.drawing.predictions import Predictions, Validated
from atlas.policies.base import Policy
from atlas.system.safe_text import cause
from atlas.tracking import RunTracker
from atlas.training.media.action_logger import ActionLogger
from atlas.training.media.gradients import GradientLogger
from atlas.training.media.projection import DatasetMap
from atlas.training.schedule import Schedule
from atlas.types import Batch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class ValidationLogger(Protocol):
    """Logs the results of a validation. Every rank computes a share, small enough to send; the main rank shows them."""

    def share(self, validated: Validated) -> Any: ...

    def show(self, parts: Sequence[Any], validated: Validated) -> None: ...


class MediaLoggers:
    """The kinds of `logging.media` that look at training and validation; those for evaluations are elsewhere.

    They do not affect training: neither weights nor random numbers. One that fails is switched off with one warning.
    seconds: the time each has taken so far on this rank.
    """

    def __init__(
        self,
        media: MediaConfig,
        schedule: Schedule,
        data: TrainingData,
        accelerator: Accelerator,
        tracker: RunTracker,
    ) -> None:
        dataset, batch_size = data.dataset, schedule.order.batch_size
        self._accelerator, self._val_interval = accelerator, schedule.val_interval
        self._intervals = fit_intervals(media, schedule.max_steps)
        self._nothing = Predictions.none(data.val.horizon, dataset.action_spec.dim)
        self._off: set[str] = set()
        self.seconds = dict.fromkeys(self._intervals, 0.0)
        self._gradients = GradientLogger(tracker)
        # Created when they are first needed.
        self._at_validation: dict[str, Callable[[], ValidationLogger]] = {
            "plot_logger": lambda: PlotLogger(media.plot_logger, dataset, data.cameras, data.val, tracker),
            "action_logger": lambda: ActionLogger(dataset, data.val.episodes, tracker),
            "vis_dataset": lambda: DatasetMap(media.vis_dataset, dataset, data.train, accelerator, batch_size, tracker),
        }
        self._made: dict[str, ValidationLogger] = {}

    def gradients_due(self, step: int) -> bool:
        """Whether `log_gradients` is due after this step, counted from 1. The same on every rank."""
        interval = self._intervals["gradient_logger"]
        return interval > 0 and step % interval == 0

    def log_gradients(self, policy: Policy, step: int) -> None:
        """Log gradients on the main rank, when a step's are complete and not yet clipped."""
        self._attempt("gradient_logger", lambda: self._gradients.log(policy, step))

    def watch(self, step: int) -> ValidationWatch | None:
        """Return the watch for the validation after `step`; None if nothing is due. The same on every rank."""
        due = [n for n in self._at_validation if due_at_validation(self._intervals[n], step, self._val_interval)]
        return ValidationWatch(self._nothing, lambda validated: self._log(due, validated)) if due else None

    def _log(self, due: Sequence[str], validated: Validated) -> None:
        """Send the shares to the main rank and show them there. Every rank gets here with the same `due`, whatever has
        failed on it, so that none waits for another."""
        for name in due:
            part = self._attempt(name, partial(self._share, name, validated))
            parts = gather_object([part])
            if not self._accelerator.is_main_process:
                continue
            if any(part is None for part in parts):  # the rank that failed has logged it
                self._off.add(name)
            else:
                self._attempt(name, partial(self._made[name].show, parts, validated))

    def _share(self, name: str, validated: Validated) -> Any:
        if name not in self._made:
            self._made[name] = self._at_validation[name]()
        return self._made[name].share(validated)

    def _attempt(self, name: str, work: Callable[[], Result]) -> Result | None:
        """The result of `work`; None if it fails, or this kind has failed before."""
        if name in self._off:
            return None
        start, state = time.perf_counter(), random_state()
        try:
            return work()
        except Exception as error:  # of any kind: datasets, drawing, a full disk or GPU memory
            self._off.add(name)
            logger.warning("logging.media.%s is switched off: %s. Training goes on.", name, cause(error).rstrip("."))
            return None
        finally:
            set_random_state(state)
            self.seconds[name] += time.perf_counter() - start


class ValidationWatch:
    """Keeps a rank's predictions while validation goes over its samples, and hands them over at its end."""

    def __init__(self, nothing: Predictions, hand_over: Callable[[Validated], None]) -> None:
        """nothing: predictions of the right shapes, for a rank without samples."""
        self._nothing, self._hand_over = nothing, hand_over
        self._batches: list[tuple[Sequence[tuple[int, int]], torch.Tensor, Batch]] = []

    def add(self, samples: Sequence[tuple[int, int]], predicted: torch.Tensor, batch: Batch) -> None:
        """samples: (epoch, index) of the batch's rows; predicted: float [B, H, A], in the ActionSpec's units."""
        self._batches.append((samples, predicted, replace(batch, images=None, features=None)))  # still on the device

    def finish(self, policy: Policy) -> None:
        """Log. Every rank calls it; policy: the one that was validated, in eval mode."""
        parts = [self._nothing, *(Predictions.of_batch(*batch) for batch in self._batches)]
        self._hand_over(Validated(policy, Predictions.merge(parts)))


def due_at_validation(interval: int, step: int, val_interval: int) -> bool:
    """Whether the validation after `step` is the first one at or after a multiple of the interval (0: never)."""
    before = (step - 1) // val_interval * val_interval
    return interval > 0 and step // interval > before // interval


def fit_intervals(media: MediaConfig, max_steps: int) -> dict[str, int]:
    """The interval of each kind in steps, for a run of `max_steps`; longer ones are shortened to the run, with a log
    line."""
    configured = {name: getattr(media, name).interval for name in _KINDS}
    fitted = {name: min(interval, max_steps) for name, interval in configured.items()}
    shortened = [
        f"{name}.interval {configured[name]} -> {fitted[name]}"
        for name in configured
        if fitted[name] < configured[name]
    ]
    if shortened:
        logger.info("Shortened to the run's %d steps, in logging.media: %s", max_steps, ", ".join(shortened))
    return fitted


_KINDS = ("gradient_logger", "plot_logger", "action_logger", "vis_dataset")
