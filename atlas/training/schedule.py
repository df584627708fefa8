"""The length of training and what happens when, in optimizer steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from atlas.checkpoints.contents import TrainingState
from atlas.config import Config
from atlas.data.sampling.order import Draws, TrainOrder
from atlas.training.optimizer import learning_rate, warmup_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    order: TrainOrder  # which samples each step takes
    max_steps: int
    rate_steps: int  # when the learning rate reaches its lowest: max_steps, unless training was made longer or shorter
    warmup_steps: int
    log_interval: int
    val_interval: int
    eval_interval: int
    save_interval: int


def make_schedule(config: Config, draws: Draws, ranks: int, state: TrainingState | None = None) -> Schedule:
    """The config's schedule for training with `ranks` ranks. What is longer than the run is shortened, with a log line.

    draws: of the training samples; state: the checkpoint's, if the run resumes from one.
    """
    settings = config.training
    start = (state.step, state.samples_seen) if state is not None else (0, 0)
    order = TrainOrder(
        draws, config.seed, config.data.batch_samples, settings.gradient_accumulation_steps, ranks, start
    )
    max_steps = settings.max_steps or order.steps_for(settings.num_epochs or 1)
    rate_steps = state.rate_steps if state is not None else None
    if rate_steps is None or config.training.schedule_on_resume == "stretch":
        rate_steps = max_steps
    asked = {
        "training.warmup_steps": config.training.warmup_steps,
        "training.log_interval": config.training.log_interval,
        "training.val_interval": config.training.val_interval,
        "evaluation.interval": config.evaluation.interval,
        "checkpoint.save_interval": config.checkpoint.save_interval,
    }
    # A warm-up that takes the whole run would leave nothing at the full rate.
    longest = {name: max_steps for name in asked} | {"training.warmup_steps": warmup_for(settings, rate_steps)}
    fitted = {name: min(steps, longest[name]) for name, steps in asked.items()}
    shortened = [f"{name} {asked[name]} -> {fitted[name]}" for name in asked if fitted[name] < asked[name]]
    if shortened:
        logger.info("Shortened to the run's %d steps: %s", max_steps, ", ".join(shortened))
    return Schedule(order, max_steps, rate_steps, *fitted.values())


def say_change(config: Config, schedule: Schedule, state: TrainingState) -> None:
    """Log what happens to the learning rate if a run resumes with another number of steps than before."""
    was, now = state.max_steps, schedule.max_steps
    if was is None or was == now:
        return
    kept, stretched = (_rate(config, steps, state.step) for steps in (state.rate_steps or was, now))
    if config.training.schedule_on_resume == "stretch":
        what = f"is stretched to {now}: {stretched:.3g} at step {state.step + 1}; keep would make it {kept:.3g}"
    else:
        steps = schedule.rate_steps
        what = f"keeps to its {steps} steps: {kept:.3g} at step {state.step + 1}; stretch would make it {stretched:.3g}"
        if steps < now:
            what += f". From step {steps} on it stays at {_rate(config, steps, steps):.3g}"
    logger.warning(
        "The run was planned for %d steps, and now for %d. The learning rate %s (training.schedule_on_resume).",
        was,
        now,
        what,
    )


def _rate(config: Config, steps: int, step: int) -> float:
    settings = config.training
    return learning_rate(step, steps, warmup_for(settings, steps), settings)
