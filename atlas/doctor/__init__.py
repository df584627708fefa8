"""Examines a machine: what it has, whether training works on it, and how to fix it if it does not."""

from atlas.doctor.examination import CHECKS, Check, can_train, examine
from atlas.doctor.verdict import Finding

__all__ = ["CHECKS", "Check", "Finding", "can_train", "examine"]
