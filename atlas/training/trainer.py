"""The training loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from signal import SIGTERM

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from atlas.checkpoints.contents import TrainingState
from atlas.data.sampling.augment import Augmenter
from atlas.data.sampling.chunks import Sample
from atlas.data.sampling.loader import make_loader, worker_count
from atlas.data.sampling.order import validation_batches
from atlas.policies.base import Policy
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.system.progress import training_bar
from atlas.tracking import RunTracker
from atlas.training.checkpoint_manager import CheckpointManager
from atlas.training.guards.signals import Interrupted, StopRequest, listening
from atlas.training.guards.skipping import SkippedSteps, not_finite, places
from atlas.training.judging.closed_loop import ClosedLoop
from atlas.training.judging.selection import EarlyStopping, choose_best_metric
from atlas.training.media.loggers import MediaLoggers
from atlas.training.metrics import ActionErrors, LossMeter
from atlas.training.optimizer import learning_rate, set_learning_rate
from atlas.training.parallel.block_setup import set_up_blocks
from atlas.training.parallel.strategy import Consensus, make_strategy
from atlas.training.perf.cost import Utilisation, sample_cost
from atlas.training.perf.memory_estimate import out_of_memory_explained
from atlas.training.perf.prefetch import Prefetcher
from atlas.training.perf.profiling import StepProfiler
from atlas.training.perf.timing import StepTimer
from atlas.training.prepared_run import PreparedRun
from atlas.training.publishing import Publisher, run_facts
from atlas.training.reference_samples import keep_answers
from atlas.training.schedule import Schedule
from atlas.types import Batch, LossTerms

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a policy on the chunks of a dataset, validates it, tries it in closed loop and saves it.

    Every rank has one. The data order, the loss and all metrics are the same for any number of ranks with the same
    total batch. `trainer.tracker.log({"custom/metric": value})` logs a custom metric.
    """

    def __init__(
        self,
        run: PreparedRun,
        policy: Policy,
        accelerator: Accelerator,
        tracker: RunTracker,
        schedule: Schedule,
        closed_loop: ClosedLoop | None = None,
        media: MediaLoggers | None = None,
    ) -> None:
        """policy: is distributed over the ranks, in place. Raises InputError if the run's checkpoint does not fit."""
        config, data, settings = run.config, run.data, run.config.training
        self.config, self.run_dir, self.tracker, self.schedule = config, run.run_dir, tracker, schedule
        self.accelerator, self.closed_loop, self.media = accelerator, closed_loop, media
        self.train_data, self.val_data = data.train, data.val
        self._heartbeat = run.heartbeat
        self.timer = StepTimer()
        self.metrics: dict[str, float] = {}  # the latest value of everything logged

        device = accelerator.device
        main = accelerator.is_main_process
        facts = run_facts(config, policy, data.dataset) if main else None
        if main:
            policy.keep_origin(self.run_dir)
        publisher = Publisher(config, tracker, facts) if facts is not None else None
        self.cost = sample_cost(policy, data.train, config.data.batch_samples) if device.type == "cuda" else None
        self.utilisation = self._utilisation(policy)
        with self._memory_explained(policy):
            policy = policy.to(device)
            set_up_blocks(policy, settings.activation_checkpointing, settings.compile)
            self.strategy = make_strategy(policy, config, accelerator)
        self.policy, self.model = self.strategy.policy, self.strategy.model
        self.optimizer = self.strategy.optimizer
        self.losses = LossMeter(self.policy.loss_names, device)
        self.checkpoint_manager = CheckpointManager(
            config.checkpoint,
            choose_best_metric(config, None if closed_loop is None else closed_loop.spec),
            self.strategy,
            accelerator,
            tracker,
            self.run_dir,
            publisher,
            data.kept_split() if main else None,
        )
        if run.checkpoint is not None:
            self.losses.set_sums(self.checkpoint_manager.resume(run.checkpoint))
        self.state.batch_size = config.data.batch_samples
        self.state.dataset_fingerprint = None if facts is None else facts["dataset_fingerprint"]
        self.state.max_steps, self.state.rate_steps = schedule.max_steps, schedule.rate_steps

        self.augment = Augmenter(config.data.augment, config.data.history.steps)
        self._val_share, self._val_loader = self._val_batches()
        self.consensus = Consensus(accelerator)
        self.skipped = SkippedSteps(settings.max_skipped_steps, self.state.skipped_steps, self.state.step)
        stopping, best, since = settings.early_stopping, self.state.stopping_best, self.state.stopping_since
        self.early_stopping = EarlyStopping(stopping, best, since) if stopping is not None else None

    @property
    def state(self) -> TrainingState:
        """The state of training."""
        return self.checkpoint_manager.state

    # ---- the loop ----------------------------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Train to the last step, validate, evaluate and save; returns the latest value of every metric.

        Raises Interrupted, after writing a checkpoint, if a signal asked to stop; NotFinite; OutOfMemory.
        """
        steps = self.schedule
        batches = self._train_batches()
        self.model.train()
        profiler = StepProfiler(
            self.config.training.profile, self.run_dir, self.timer, self.accelerator.process_index, self.state.step
        )
        self.timer.restart()
        with listening() as stop, self._bar() as show, closing(profiler), self._memory_explained(self.policy):
            over = self.state.stopped_short and self._finish_step(again=True)
            for step in range(self.state.step, self.state.step if over else steps.max_steps):
                rate = learning_rate(step, steps.rate_steps, steps.warmup_steps, self.config.training)
                set_learning_rate(self.optimizer, rate)
                stopped_by, grad_norm = self._optimize(batches, step, stop)
                self.timer.step_done()
                profiler.step()
                done = self.tracker.step = self.state.step = step + 1
                self.state.samples_seen = self.schedule.order.samples_seen(done)
                self._heartbeat.beat(f"step {done}")
                show(self.metrics_to_show)

                if done % steps.log_interval == 0 or done == steps.max_steps:
                    self._log_progress(rate, grad_norm)
                if stopped_by:
                    self.state.stopped_short = True
                    self.save()
                    self.checkpoint_manager.finish()
                    raise Interrupted(stopped_by)
                if self._finish_step():
                    break
        self.checkpoint_manager.finish()
        return self.metrics

    def _optimize(self, batches: Prefetcher, step: int, stop: StopRequest) -> tuple[int, torch.Tensor]:
        """One optimizer step; returns the signal that asks some rank to stop (or 0) and the gradient's norm (0-d).

        A step whose loss or gradient is not finite is left out, on all ranks.
        """
        settings = self.config.training
        valid = int(self.train_data.valid_steps[self.schedule.order.step_samples(step)[:, 1]].sum())
        terms = []
        for left in reversed(range(settings.gradient_accumulation_steps)):
            with self.timer.part("data"):
                batch = batches.take()
            # Gradients are exchanged once, with the last part.
            terms.append(self._backward(batch, valid, self.strategy.accumulating() if left else nullcontext()))
            with self.timer.part("data"):
                batches.begin()  # while the device is busy with this one
        if self.media is not None and self.media.gradients_due(step + 1):
            with self.strategy.inspected() as policy:
                if policy is not None:
                    self.media.log_gradients(policy, step + 1)
        with self.timer.part("optimizer"):
            grad_norm = self.strategy.clip(settings.max_grad_norm)
            stopped_by, broken = self._agree(stop, terms, grad_norm)
            if broken:
                self._leave_out(step, terms, grad_norm)
            else:
                self.optimizer.step()
                self.strategy.stepped(step)
                self.skipped.taken(step + 1)
                for each in terms:
                    self.losses.add(each)
            self.optimizer.zero_grad(set_to_none=True)
        return stopped_by, grad_norm

    def _backward(self, batch: Batch, valid: int, exchange: AbstractContextManager[None]) -> LossTerms:
        """Add this batch's share of the step's gradient. `valid`: the action steps in the whole step, on all ranks."""
        with exchange:
            with self.timer.part("forward"):
                terms: LossTerms = self.model(self._as_floats(batch, augment=True))
            with self.timer.part("backward"):
                # The mean over all valid elements of the step. Gradients are means over ranks, hence the factor.
                share = terms.loss * terms.n_valid * self.accelerator.num_processes / valid
                self.accelerator.backward(share)
        return terms

    def _agree(self, stop: StopRequest, terms: Sequence[LossTerms], grad_norm: torch.Tensor) -> tuple[int, bool]:
        """Return what all ranks must agree on: (the signal that asks to stop, or 0; whether the step is to be left
        out).

        This waits for the device, at the only point in a step.
        """
        wanted = stop.signal or (SIGTERM if self.tracker.stop_requested else 0)
        broken = not_finite(terms) | (~grad_norm.isfinite()).long()
        found = self.consensus.largest(torch.stack([self.consensus.tensor(wanted), broken]))
        return found[0], bool(found[1])

    def _leave_out(self, step: int, terms: Sequence[LossTerms], grad_norm: torch.Tensor) -> None:
        """Note a step that is left out. Raises NotFinite, with a checkpoint from before, if there are too many."""
        rank = self.accelerator.process_index
        losses = ", ".join(f"{float(t.loss.detach()):g}" for t in terms)
        samples = places(self.train_data, self.schedule.order.rank_samples(rank, step))
        described = gather_object([f"rank {rank} had the loss {losses} with {samples}"])
        if self.accelerator.is_main_process:
            logger.warning(
                "Step %d is left out, as its loss or gradient is not finite (gradient norm %g): %s.",
                step + 1,
                float(grad_norm),
                ". ".join(described),
            )
        if self.skipped.left_out():
            self.state.step = self.tracker.step = self.skipped.last_taken
            self.state.samples_seen = self.schedule.order.samples_seen(self.state.step)
            self.save()
            self.checkpoint_manager.finish()
            raise self.skipped.too_many()

    # ---- judging -----------------------------------------------------------------------------------------

    def _finish_step(self, again: bool = False) -> bool:
        """Validate, evaluate and save if it is due at this step; returns whether it is the last one.

        again: the step has been saved already, but without these, as a signal came.
        """
        steps, done = self.schedule, self.state.step
        self.state.stopped_short = False
        judged = self._validate_and_evaluate(done % steps.val_interval == 0, done % steps.eval_interval == 0)
        last = self._stops_early(judged) or done == steps.max_steps
        if last:
            judged |= self._validate_and_evaluate("val/loss" not in judged, "eval/mean_reward" not in judged)
        self._save_if_due(judged, last or again)
        if judged:
            self.timer.restart()
        return last

    def _validate_and_evaluate(self, validate: bool, evaluate: bool) -> dict[str, float]:
        """Validate and evaluate if due; returns the resulting metrics."""
        judged: dict[str, float] = {}
        if validate and len(self.val_data):
            judged |= self.validate()
        if evaluate and self.closed_loop is not None:
            judged |= self.evaluate(self.closed_loop)
        return judged

    def _stops_early(self, judged: dict[str, float]) -> bool:
        """Whether early stopping ends the run here."""
        if self.early_stopping is None or not self.early_stopping.enough(judged):
            return False
        logger.info("Step %d is the last: %s.", self.state.step, self.early_stopping.reason())
        return True

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses and errors on the validation episodes; each rank takes a share of the samples."""
        accelerator, spec = self.accelerator, self.policy.processor.action_spec
        losses = LossMeter(self.policy.loss_names, accelerator.device)
        errors = ActionErrors(spec, sorted(set(self.val_data.instructions())), accelerator.device)
        batches = Prefetcher(iter(self._val_loader), accelerator.device)
        watch = self.media.watch(self.state.step) if self.media is not None else None
        with self.strategy.judged() as policy:
            for samples in self._val_share:
                batch = self._as_floats(batches.take())
                assert batch.actions is not None and batch.action_is_pad is not None
                with accelerator.autocast():
                    terms, sampled = policy.losses_and_sample(batch)
                if accelerator.is_main_process and samples is self._val_share[0]:
                    low = accelerator.mixed_precision == "bf16"
                    computed = torch.bfloat16 if low else next(policy.parameters()).dtype
                    execute = self.config.evaluation.execute
                    keep_answers(policy, self.val_data, samples, batch, sampled, self.state.step, computed, execute)
                losses.add(terms)
                errors.add(sampled, batch.actions, batch.action_is_pad, batch.instruction)
                if watch is not None:
                    watch.add(samples, sampled, batch)
                batches.begin()
                self._heartbeat.beat("a batch of validation")
            metrics = losses.read(accelerator, "val") | errors.read(accelerator)
            self._log(metrics)
            if watch is not None:
                watch.finish(policy)
        return metrics

    def evaluate(self, closed_loop: ClosedLoop) -> dict[str, float]:
        """Success in closed loop, on the episodes that serve to choose the best checkpoint."""
        step, evaluation = self.state.step, self.config.evaluation
        with self.strategy.judged() as policy:
            actor = ChunkExecutor.configured(policy, evaluation, closed_loop.env)
            report = closed_loop.run(actor, "selection", evaluation.episodes, f"step {step}", step)
        metrics = report.metrics()
        self._log(metrics)
        return metrics

    # ---- saving ------------------------------------------------------------------------------------------

    def save(self, best: bool = False) -> None:
        """Begin to write a checkpoint of this step, which continues in the background; every rank calls it."""
        self.state.skipped_steps = self.skipped.total
        if self.early_stopping is not None:
            self.state.stopping_best, self.state.stopping_since = self.early_stopping.best, self.early_stopping.since
        self.checkpoint_manager.save(self.losses.sums, self.metrics, best)

    def _save_if_due(self, judged: dict[str, float], anyway: bool) -> None:
        """Save at the interval, when this step is the best so far, and when asked to."""
        best = self.checkpoint_manager.judge(judged)
        if best or anyway or self.state.step % self.schedule.save_interval == 0:
            self.save(best)
        if best:
            assert self.state.best_value is not None
            self._log({"best_model/step": float(self.state.step), "best_model/value": self.state.best_value})

    # ---- small parts -------------------------------------------------------------------------------------

    def _train_batches(self) -> Prefetcher:
        dealt = self.schedule.order.batches(self.accelerator.process_index, self.state.step, self.schedule.max_steps)
        device = self.accelerator.device
        workers = worker_count(self.config.data.num_workers, device)
        loader = make_loader(self.train_data, dealt, workers, pin_memory=device.type == "cuda")
        return Prefetcher(iter(loader), device)

    def _val_batches(self) -> tuple[list[list[Sample]], DataLoader[Batch]]:
        """This rank's validation samples in batches, and a loader for them that can be iterated over repeatedly."""
        accelerator, data = self.accelerator, self.config.data
        rank, ranks, device = accelerator.process_index, accelerator.num_processes, accelerator.device
        share = validation_batches(len(self.val_data), data.batch_samples, rank, ranks)
        workers = min(worker_count(data.num_workers, device), len(share))
        return share, make_loader(self.val_data, share, workers, pin_memory=device.type == "cuda", again=True)

    def _as_floats(self, batch: Batch, augment: bool = False) -> Batch:
        """A batch on the device with images in [0, 1]."""
        if batch.images is None:
            return batch
        images = batch.unit_images()
        return replace(batch, images=self.augment(images, batch) if augment else images)

    def _memory_explained(self, policy: Policy) -> AbstractContextManager[None]:
        """Within it, OutOfMemory is raised if memory runs out."""
        return out_of_memory_explained(self.config, len(policy.processor.cameras), self.accelerator.device, self.cost)

    def _utilisation(self, policy: Policy) -> Utilisation | None:
        if self.cost is None:
            return None
        # A frozen backbone in bfloat16 computes in it whatever the rest does.
        low = self.accelerator.mixed_precision == "bf16" or any(p.dtype == torch.bfloat16 for p in policy.parameters())
        processes, tf32 = self.accelerator.num_processes, self.config.training.tf32
        return Utilisation.on(self.accelerator.device, processes, self.cost, low, tf32)

    def _log_progress(self, rate: float, grad_norm: torch.Tensor) -> None:
        metrics = self.losses.read(self.accelerator, "train") | {
            "train/lr": rate,
            "train/epoch": self.schedule.order.epoch_at(self.state.step),
            "train/step": float(self.state.step),
            "train/grad_norm": float(grad_norm),
            "train/skipped_steps": float(self.skipped.total),
        }
        metrics |= self.timer.read(self.schedule.order.samples_a_step)
        if self.utilisation is not None:
            metrics |= self.utilisation.metrics(metrics["perf/samples_per_second"])
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

    def _bar(self):  # type: ignore[no-untyped-def]  # a context manager, as training_bar says
        return training_bar(self.schedule.max_steps, self.state.step, self.accelerator.is_main_process)
