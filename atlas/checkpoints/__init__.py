"""Checkpoints: what they hold, how they are written in the background, kept, checked and found."""

from atlas.checkpoints.manager import (
    Checkpoints,
    Contents,
    find_checkpoint,
    find_undamaged,
    saved_steps,
    verify,
)
from atlas.checkpoints.state import TrainingState, load_state

__all__ = [
    "Checkpoints",
    "Contents",
    "TrainingState",
    "find_checkpoint",
    "find_undamaged",
    "load_state",
    "saved_steps",
    "verify",
]
