"""The trainer and its parts."""

from atlas.training.guards.signals import Interrupted
from atlas.training.trainer import Trainer

__all__ = ["Interrupted", "Trainer"]
