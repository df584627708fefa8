"""The logging of a run, and where it goes: TensorBoard always, wandb if enabled, the console and `train.log`."""

from atlas.tracking.tracker import Resumed, RunTracker

__all__ = ["Resumed", "RunTracker"]
