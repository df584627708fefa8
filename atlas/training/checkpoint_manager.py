"""Saving a run: when it is due, what is saved, and which checkpoint is the best."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from atlas.checkpoints.background_writer import BackgroundWriter
from atlas.checkpoints.contents import (
    TrainingState,
    load_state,
    random_state,
    set_random_state,
    split_of,
    state_of_rank,
)
from atlas.checkpoints.run_folder import Retention
from atlas.config import CheckpointConfig
from atlas.data.sampling.kept_split import KeptSplit
from atlas.errors import InputError, first_line
from atlas.tracking import RunTracker
from atlas.training.judging.selection import BestMetric
from atlas.training.parallel.strategy import Strategy
from atlas.training.publishing import Publisher

logger = logging.getLogger(__name__)

Sums = Mapping[str, torch.Tensor]


class NotSaved(Exception):
    """Training is over, but some of its checkpoints could not be written. The message says which and why."""

    exit_code = 1


class CheckpointManager:
    """Writes a run's checkpoints in the background, and resumes from one. Every rank has one.

    state: the state of training, which the Trainer updates.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        best_metric: BestMetric,
        strategy: Strategy,
        accelerator: Accelerator,
        tracker: RunTracker,
        run_dir: Path,
        publisher: Publisher | None = None,
        split: KeptSplit | None = None,
    ) -> None:
        """publisher, split: only on the main rank; split is the data's, which stays with the run."""
        name, larger = best_metric.name, best_metric.larger_is_better
        retention = Retention(config.keep_last_n, config.keep_best, config.keep_every_n_steps, name, larger)
        self.checkpoints = strategy.checkpoints(run_dir, retention)
        self.best_metric = best_metric
        self.state = TrainingState(step=0, samples_seen=0, world_size=accelerator.num_processes)
        self._strategy, self._accelerator, self._tracker = strategy, accelerator, tracker
        self._publisher = publisher
        self._split = None if split is None else split_of(split)
        self._failed: list[str] = []
        # What was logged before a checkpoint is on disk before it, so that a resumed run has the whole curve.
        self._writer = BackgroundWriter(self.checkpoints, before=tracker.flush)

    def resume(self, checkpoint: Path) -> Sums:
        """Resume from a checkpoint: weights, optimizer, random numbers, state. Returns this rank's sums, see `save`.

        Raises InputError if it does not fit.
        """
        accelerator = self._accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        self.state = load_state(checkpoint)
        self.state.restarts += 1
        states = self._strategy.load(checkpoint)
        try:
            mine = state_of_rank(states, rank, world)
            if "random" in mine:
                set_random_state(mine["random"])
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise InputError(
                f"{checkpoint / 'trainer'} holds no states of its processes ({first_line(error)})."
            ) from None
        if "random" not in mine and accelerator.is_main_process:
            logger.warning(
                "The checkpoint is from %d processes, but this run has %d: it resumes at the same sample, but with "
                "other random numbers, so it is not the same run bit for bit.",
                self.state.world_size,
                world,
            )
        self.state.world_size = world
        sums: Sums = mine["sums"]
        return sums

    def judge(self, judged: Mapping[str, float]) -> bool:
        """Take note of a step's metrics; True if they make it the best step so far."""
        value = judged.get(self.best_metric.name)
        self.state.metric, self.state.value = self.best_metric.name, value
        if value is None or not self.best_metric.improves(value, self.state.best_value):
            return False
        self.state.best_step, self.state.best_value = self.state.step, value
        return True

    def save(self, sums: Sums, metrics: Mapping[str, float], best: bool = False) -> None:
        """Begin to write a checkpoint of this step; every rank calls it. It is uploaded afterwards, if that is due.

        sums: what this rank has added up since it last logged, so that means continue after a resume. metrics: the
        latest value of each of the run's metrics. Waits for the previous checkpoint.
        """
        self._writer.wait()
        self.state.checkpoints += 1
        self.state.wandb_id, self.state.wandb_row = self._tracker.wandb_id, self._tracker.wandb_row
        # Objects are pickled with their devices: a tensor on each rank's GPU would open that GPU on every rank.
        mine = {"random": random_state(), "sums": {name: value.cpu() for name, value in sums.items()}}
        if self._split is not None:
            mine["split"] = self._split
        rank_states = gather_object([mine])
        snapshot = self._strategy.snapshot(self.state, rank_states)
        if snapshot is not None:
            self._writer.begin(snapshot, self._upload(dict(metrics), best))

    def _upload(self, metrics: Mapping[str, float], best: bool) -> Callable[[Path], object] | None:
        if self._publisher is None:
            return None
        number, step = self.state.checkpoints, self.state.step
        return partial(self._publisher.after_save, number=number, step=step, metrics=metrics, best=best)

    def finish(self) -> None:
        """Wait until everything is written; every rank calls it, and none returns before all are done."""
        self._writer.wait()
        self._failed = gather_object(self._writer.failed)

    def check(self) -> None:
        """Raises NotSaved, on every rank, if a checkpoint could not be written; call it after `finish`."""
        if self._failed:
            raise NotSaved(" ".join(["Not everything could be saved.", *self._failed]))
