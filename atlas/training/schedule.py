"""How long training lasts and what happens when, in optimizer steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from atlas.config import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    max_steps: int
    warmup_steps: int
    log_interval: int
    val_interval: int
    eval_interval: int
    save_interval: int


def make_schedule(config: Config, max_steps: int) -> Schedule:
    """The config's schedule for a run of `max_steps`; what is longer than the run is shortened, and said."""
    asked = {
        "training.warmup_steps": config.training.warmup_steps,
        "training.log_interval": config.training.log_interval,
        "training.val_interval": config.training.val_interval,
        "evaluation.interval": config.evaluation.interval,
        "checkpoint.save_interval": config.checkpoint.save_interval,
    }
    # A warm-up that takes the whole run would leave nothing at the full rate.
    longest = {name: max_steps for name in asked} | {"training.warmup_steps": max_steps // 10}
    fitted = {name: min(steps, longest[name]) for name, steps in asked.items()}
    shortened = [f"{name} {asked[name]} -> {fitted[name]}" for name in asked if fitted[name] < asked[name]]
    if shortened:
        logger.info("Shortened to the run's %d steps: %s", max_steps, ", ".join(shortened))
    return Schedule(max_steps, *fitted.values())
