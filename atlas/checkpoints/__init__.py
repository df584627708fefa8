"""Checkpoints: what they hold, how they are written in the background, kept, checked and found."""

from atlas.checkpoints.contents import Captured, Contents, TrainingState, load_state
from atlas.checkpoints.run_folder import (
    Checkpoints,
    Retention,
    find_checkpoint,
    find_undamaged,
    saved_steps,
    verify,
)

__all__ = [
    "Captured",
    "Checkpoints",
    "Contents",
    "Retention",
    "TrainingState",
    "find_checkpoint",
    "find_undamaged",
    "load_state",
    "saved_steps",
    "verify",
]
