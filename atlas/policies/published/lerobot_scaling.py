"""Scales numbers as LeRobot's (un)normaliser steps do, with the statistics that this needs.

The formulas, with the step's eps (1e-8):

    mean_std    (x - mean) / (std + eps)            back: x std + mean
    quantiles   2 (x - q01) / (q99 - q01) - 1       back: (x + 1) (q99 - q01) / 2 + q01; eps where both are equal
    min_max     the same with min and max
    identity    x
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from atlas.data.statistics import ColumnStatistics

if TYPE_CHECKING:
    from atlas.policies.published.processor_files import ProcessorFiles

logger = logging.getLogger(__name__)

_NEEDED = {"mean_std": ("mean", "std"), "quantiles": ("q01", "q99"), "min_max": ("min", "max"), "identity": ()}


class LeRobotScaler(nn.Module):
    """Scales each dimension by its source's statistics, which are not weights and not in the state dict."""

    low: torch.Tensor  # [sources, D]: the mean, or the value that becomes -1
    span: torch.Tensor  # [sources, D]: the standard deviation, or the distance from there to the value that becomes 1

    def __init__(self, statistics: Sequence[ColumnStatistics], mode: str, eps: float = 1e-8) -> None:
        super().__init__()
        self.mode, self.eps = mode, eps
        low, span = [], []
        for columns in statistics:
            zeros = [0.0] * len(columns.mean)
            first, second = (getattr(columns, name) for name in _NEEDED[mode]) if mode != "identity" else (zeros, zeros)
            start, end = torch.tensor(first, dtype=torch.float32), torch.tensor(second, dtype=torch.float32)
            low.append(start)
            span.append(end if mode == "mean_std" else end - start)
        self.register_buffer("low", torch.stack(low), persistent=False)
        self.register_buffer("span", torch.stack(span), persistent=False)

    def normalize(self, values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """values: float32 [B, ..., D]; source: int64 [B]."""
        if self.mode == "identity":
            return values
        low, span = (self._of(numbers, source, values) for numbers in (self.low, self.span))
        if self.mode == "mean_std":
            return (values - low) / (span + self.eps)
        return 2.0 * (values - low) / torch.where(span == 0, self.eps, span) - 1.0

    def denormalize(self, values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`."""
        if self.mode == "identity":
            return values
        low, span = (self._of(numbers, source, values) for numbers in (self.low, self.span))
        if self.mode == "mean_std":
            return values * span + low
        return (values + 1.0) * torch.where(span == 0, self.eps, span) / 2.0 + low

    @staticmethod
    def _of(numbers: torch.Tensor, source: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        rows = numbers[source]  # [B, D]
        return rows.view(rows.shape[0], *[1] * (values.ndim - 2), rows.shape[1])


def columns_of(files: ProcessorFiles, feature: str, mode: str, dim: int) -> ColumnStatistics | str:
    """A folder's statistics of a feature of `dim` numbers, or the reason why they cannot be used.

    Statistics that the folder lacks and `mode` does not use are filled in: quantiles from minimum and maximum, and
    these from mean and standard deviation.
    """
    found = files.statistics.get(feature)
    if not files.present:
        return "the folder has no processor files"
    if not found:
        return f"its processor files have no statistics for '{feature}'"
    for name, values in found.items():
        if name in ("mean", "std", "min", "max", "q01", "q99"):
            if values.numel() != dim:
                return f"its '{name}' of '{feature}' has {values.numel()} numbers, and {dim} are needed"
            if not bool(values.isfinite().all()):
                return f"its '{name}' of '{feature}' is not finite"
    missing = [name for name in _NEEDED[mode] if name not in found]
    if missing:
        return f"its statistics of '{feature}' lack {' and '.join(missing)}, which {mode} needs"
    return _completed(found, dim)


def _completed(found: Mapping[str, torch.Tensor], dim: int) -> ColumnStatistics:
    zeros = torch.zeros(dim)
    low = found.get("min", found.get("q01", found.get("mean", zeros) - found.get("std", zeros)))
    high = found.get("max", found.get("q99", found.get("mean", zeros) + found.get("std", zeros)))
    rows = {
        "mean": found.get("mean", (low + high) / 2),
        "std": found.get("std", (high - low) / 2),
        "min": low,
        "max": high,
        "q01": found.get("q01", low),
        "q99": found.get("q99", high),
    }
    return ColumnStatistics(**{name: tuple(row.tolist()) for name, row in rows.items()})


def identity_columns(dim: int) -> ColumnStatistics:
    """Statistics with which numbers pass unscaled in every mode: mean 0, standard deviation 1, from -1 to 1."""
    zeros, ones, less = (0.0,) * dim, (1.0,) * dim, (-1.0,) * dim
    return ColumnStatistics(zeros, ones, less, ones, less, ones)
