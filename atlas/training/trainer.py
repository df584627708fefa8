"""The training loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from atlas.config import Config
from atlas.data.augment import Augmenter
from atlas.data.chunks import ChunkDataset
from atlas.data.loader import make_loader, worker_count
from atlas.data.order import TrainOrder, validation_batches
from atlas.policy import AtlasPolicy
from atlas.progress import training_bar
from atlas.tracking import RunTracker
from atlas.training.average import WeightAverage
from atlas.training.checkpoints import (
    Checkpoints,
    TrainingState,
    load_state,
    load_tensors,
    random_state,
    set_random_state,
)
from atlas.training.closed_loop import ClosedLoop
from atlas.training.media.loggers import MediaLoggers
from atlas.training.metrics import ActionErrors, LossMeter
from atlas.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from atlas.training.publishing import Publisher
from atlas.training.schedule import Schedule
from atlas.training.signals import Interrupted, StopRequest, listening
from atlas.training.timing import StepTimer
from atlas.types import Batch, LossTerms

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BestMetric:
    """By which metric the best checkpoint is chosen."""

    name: str
    larger_is_better: bool

    def improves(self, value: float, best: float | None) -> bool:
        """Equal values count as better: of two checkpoints that do alike, the later has learned longer."""
        return best is None or (value >= best if self.larger_is_better else value <= best)


class Trainer:
    """Trains a policy on the chunks of a dataset, validates it, tries it in closed loop and saves it.

    Every rank has one. The data order, the loss and all metrics are the same for any number of ranks with the same
    total batch. `trainer.tracker.log({"custom/metric": value})` logs a metric of one's own.
    """

    def __init__(
        self,
        config: Config,
        policy: AtlasPolicy,
        train_data: ChunkDataset,
        val_data: ChunkDataset,
        run_dir: Path,
        accelerator: Accelerator,
        tracker: RunTracker,
        schedule: Schedule,
        closed_loop: ClosedLoop | None = None,
        checkpoint: Path | None = None,
        media: MediaLoggers | None = None,
        publisher: Publisher | None = None,
    ) -> None:
        """checkpoint: one of this run to go on from. Raises InputError where it does not fit."""
        self.config, self.run_dir, self.tracker, self.schedule = config, run_dir, tracker, schedule
        self.accelerator = accelerator
        self.train_data, self.val_data = train_data, val_data
        self.closed_loop = closed_loop
        self.media, self.publisher = media, publisher
        self.best_metric = choose_best_metric(config, closed_loop is not None)
        self.checkpoints = Checkpoints(run_dir, config.checkpoint.keep_last_n)
        self.timer = StepTimer()
        self.metrics: dict[str, float] = {}  # the latest value of everything logged

        self.policy = policy.to(accelerator.device)
        self.optimizer = make_optimizer(self.policy, config.training)
        decay = config.training.ema_decay
        self.average = WeightAverage(self.policy, decay) if decay else None
        self.state = TrainingState(step=0, samples_seen=0, world_size=accelerator.num_processes)
        if checkpoint is not None:
            self._resume(checkpoint)
        self.model = accelerator.prepare_model(self.policy)  # DDP where there are several ranks

        settings = config.training
        self.order = TrainOrder(
            len(train_data),
            config.seed,
            config.data.batch_size,
            settings.gradient_accumulation_steps,
            accelerator.num_processes,
            start=(self.state.step, self.state.samples_seen),
        )
        self.augment = Augmenter(config.data.augment)
        self.losses = LossMeter(self.policy.loss_names, accelerator.device)

    # ---- the loop ----------------------------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Train to the last step, validate, evaluate and save; returns the latest value of every metric.

        Raises Interrupted, after a checkpoint, when a signal asked to stop.
        """
        steps = self.schedule
        batches = self._train_batches()
        self.model.train()
        self.timer.restart()
        with listening() as stop, self._bar() as show:
            for step in range(self.state.step, steps.max_steps):
                rate = learning_rate(step, steps.max_steps, steps.warmup_steps, self.config.training.learning_rate)
                set_learning_rate(self.optimizer, rate)
                grad_norm = self._optimize(batches, step)
                self.timer.step_done()
                done = self.tracker.step = self.state.step = step + 1
                self.state.samples_seen = self.order.samples_seen(done)
                show(self.metrics_to_show)

                if done % steps.log_interval == 0 or done == steps.max_steps:
                    self._log_progress(rate, grad_norm)
                if self._stopped(stop, done):
                    self.save()
                    self._publish(best=False)
                    raise Interrupted(stop.signal or 15)
                last = done == steps.max_steps
                judged: dict[str, float] = {}
                if done % steps.val_interval == 0 or last:
                    judged |= self.validate()
                if self.closed_loop is not None and (done % steps.eval_interval == 0 or last):
                    judged |= self.evaluate(self.closed_loop)
                self._save_if_due(judged, last)
                if judged:
                    self.model.train()
                    self.timer.restart()
        return self.metrics

    def _optimize(self, batches: Iterator[Batch], step: int) -> torch.Tensor:
        """One optimizer step; returns the gradient's norm before clipping (0-d)."""
        settings = self.config.training
        with self.timer.part("data"):
            parts = [next(batches) for _ in range(settings.gradient_accumulation_steps)]
        valid = int(self.train_data.valid_steps[[i for _, i in self.order.step_samples(step)]].sum())
        for number, batch in enumerate(parts):
            if number == len(parts) - 1:
                self._backward(batch, valid)
            else:
                with self.accelerator.no_sync(self.model):  # gradients are exchanged once, with the last part
                    self._backward(batch, valid)
        if self.media is not None:
            self.media.after_backward(self.policy, step + 1)
        with self.timer.part("optimizer"):
            grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update(self.policy, step)
        return grad_norm

    def _backward(self, batch: Batch, valid: int) -> None:
        """Add this batch's share of the step's gradient. `valid`: the action steps of the whole step, on all ranks."""
        with self.timer.part("forward"):
            batch = self._on_device(batch, augment=True)
            terms: LossTerms = self.model(batch)
        with self.timer.part("backward"):
            # The mean over all valid elements of the step. DDP averages over ranks, hence the factor.
            share = terms.loss * terms.n_valid * self.accelerator.num_processes / valid
            self.accelerator.backward(share)
        self.losses.add(terms)

    # ---- judging -----------------------------------------------------------------------------------------

    @property
    def judged_policy(self) -> AtlasPolicy:
        """What is validated, evaluated and saved: the averaged weights where there are some."""
        return self.average.policy if self.average is not None else self.policy

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses and errors on the validation episodes; each rank takes a share of the samples."""
        policy = self.judged_policy.eval()
        accelerator, spec = self.accelerator, self.policy.processor.action_spec
        losses = LossMeter(self.policy.loss_names, accelerator.device)
        errors = ActionErrors(spec, sorted(set(self.val_data.instructions())), accelerator.device)
        share = validation_batches(
            len(self.val_data), self.config.data.batch_size, accelerator.process_index, accelerator.num_processes
        )
        watch = self.media.watch(self.state.step) if self.media is not None else None
        for samples, loaded in zip(share, make_loader(self.val_data, share, num_workers=0), strict=True):
            batch = self._on_device(loaded)
            assert batch.actions is not None and batch.action_is_pad is not None
            with accelerator.autocast():
                terms, sampled = policy.losses_and_sample(batch)
            losses.add(terms)
            errors.add(sampled, batch.actions, batch.action_is_pad, batch.instruction)
            if watch is not None:
                watch.add(samples, sampled, batch)
        metrics = losses.read(accelerator, "val") | errors.read(accelerator)
        self._log(metrics)
        if watch is not None:
            watch.finish(policy)
        return metrics

    def evaluate(self, closed_loop: ClosedLoop) -> dict[str, float]:
        """Success in closed loop, on the episodes that serve to choose the best checkpoint."""
        policy = self.judged_policy.eval()
        step = self.state.step
        report = closed_loop.run(policy, "selection", self.config.evaluation.episodes, f"step {step}", step)
        metrics = report.metrics()
        self._log(metrics)
        return metrics

    # ---- saving ------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of this step; every rank calls it, the main one writes."""
        states = gather_object([random_state()])
        self.state.checkpoints += 1
        self.tracker.flush()
        self.state.wandb_id, self.state.wandb_row = self.tracker.wandb_id, self.tracker.wandb_row
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.judged_policy, self.policy, self.optimizer, self.state, states)
        self.accelerator.wait_for_everyone()
        return self.checkpoints.path(self.state.step)

    def _save_if_due(self, judged: dict[str, float], last: bool) -> None:
        """Save at the interval, at the end, and when this step is the best so far."""
        value = judged.get(self.best_metric.name)
        best = value is not None and self.best_metric.improves(value, self.state.best_value)
        if best:
            self.state.best_step, self.state.best_value = self.state.step, value
        due = best or last or self.state.step % self.schedule.save_interval == 0
        if due:
            self.save()
        if best:
            assert value is not None
            if self.accelerator.is_main_process:
                self.checkpoints.mark_best(self.state.step)
            self._log({"best_model/step": float(self.state.step), "best_model/value": value})
        if due:
            self._publish(best)

    def _publish(self, best: bool) -> None:
        if self.publisher is not None:
            self.publisher.after_save(self.checkpoints.path(self.state.step), self.state.step, self.metrics, best)

    def _resume(self, checkpoint: Path) -> None:
        self.state = load_state(checkpoint)
        self.state.restarts += 1
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        states = load_tensors(checkpoint, self.judged_policy, self.policy, self.optimizer)
        if self.state.world_size == world:
            set_random_state(states[rank])
        elif self.accelerator.is_main_process:
            logger.warning(
                "The checkpoint is of %d processes and this run has %d: it goes on at the same sample, but its random "
                "numbers are other ones, so it is not the same run bit for bit.",
                self.state.world_size,
                world,
            )
        self.state.world_size = world

    # ---- small parts -------------------------------------------------------------------------------------

    def _train_batches(self) -> Iterator[Batch]:
        data = self.config.data
        dealt = self.order.batches(self.accelerator.process_index, self.state.step, self.schedule.max_steps)
        device = self.accelerator.device
        workers = worker_count(data.num_workers, device)
        return iter(make_loader(self.train_data, dealt, workers, pin_memory=device.type == "cuda"))

    def _on_device(self, batch: Batch, augment: bool = False) -> Batch:
        batch = batch.to(self.accelerator.device)
        if batch.images is not None:
            batch.images = batch.images.float() / 255
            if augment:
                batch.images = self.augment(batch.images, batch)
        return batch

    def _log_progress(self, rate: float, grad_norm: torch.Tensor) -> None:
        metrics = self.losses.read(self.accelerator, "train") | {
            "train/lr": rate,
            "train/epoch": self.order.epoch_at(self.state.step),
            "train/step": float(self.state.step),
            "train/grad_norm": float(grad_norm),
        }
        metrics |= self.timer.read(self.order.samples_a_step)
        if self.accelerator.device.type == "cuda":
            metrics["perf/gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._log(metrics)

    def _log(self, metrics: dict[str, float]) -> None:
        self.metrics |= metrics
        self.tracker.log(metrics)

    @property
    def metrics_to_show(self) -> dict[str, float]:
        names = {"loss": "train/loss", "samples/s": "perf/samples_per_second", "success": "eval/success_rate"}
        return {short: self.metrics[name] for short, name in names.items() if name in self.metrics}

    def _stopped(self, request: StopRequest, step: int) -> bool:
        """Whether to stop now. Several ranks must agree, which they do at the steps that are logged."""
        wanted = request.signal is not None or self.tracker.stop_requested
        if self.accelerator.num_processes == 1:
            return wanted
        if step % self.schedule.log_interval:
            return False
        signals = torch.tensor([request.signal or 15 if wanted else 0], device=self.accelerator.device)
        agreed = int(self.accelerator.gather(signals).max())
        if agreed:
            request.signal = agreed
        return bool(agreed)

    def _bar(self):  # type: ignore[no-untyped-def]  # a context manager, as training_bar says
        return training_bar(self.schedule.max_steps, self.state.step, self.accelerator.is_main_process)


def choose_best_metric(config: Config, rollouts: bool) -> BestMetric:
    """The metric that the config names; 'auto' is success where there are rollouts, else the validation loss."""
    name, mode = config.model_management.best_model_metric, config.model_management.best_model_mode
    if name == "auto":
        name = "eval/success_rate" if rollouts else "val/loss"
    if mode == "auto":
        rising = any(part in name for part in ("success", "accuracy", "reward"))
        return BestMetric(name, rising)
    return BestMetric(name, mode == "max")
