"""What a run reports and where it goes: TensorBoard always, wandb when enabled, the console and `train.log`."""

from atlas.tracking.tracker import Resumed, RunTracker

__all__ = ["Resumed", "RunTracker"]
