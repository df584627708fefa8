"""Histograms of gradients and weights, and gradient norms, of a policy's modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from atlas.tracking import RunTracker

_BINS = 64
_STATISTICS = 5  # minimum, maximum, number, sum, sum of squares; then the counts


class GradientLogger:
    """Logs `gradients/<module>/norm` as numbers, `gradients/<module>` and `weights/<module>` as histograms.

    A module here is a part of the policy or a direct child of one (`vision/stems`, `head/pose`); norms are also given
    for the parts as a whole. Only trained weights are looked at.
    """

    def __init__(self, tracker: RunTracker) -> None:
        self._tracker = tracker

    def log(self, policy: nn.Module, step: int) -> None:
        """Log the current gradients. Everything is counted on the device and read at once."""
        groups = group_parameters(policy)
        summaries = {
            **{f"weights/{name}": summarize(parameters) for name, parameters in groups.items()},
            **{f"gradients/{name}": summarize(found) for name, p in groups.items() if (found := gradients_of(p))},
        }
        rows = torch.stack(list(summaries.values())).cpu().numpy()
        squares: dict[str, float] = {}
        for name, row in zip(summaries, rows, strict=True):
            self._log_histogram(name, row, step)
            if name.startswith("gradients/"):
                part = name.rpartition("/")[0]
                squares[name] = float(row[4])
                if part != "gradients":
                    squares[part] = squares.get(part, 0.0) + float(row[4])
        self._tracker.log({f"{name}/norm": total**0.5 for name, total in squares.items()}, step)

    def _log_histogram(self, name: str, row: np.ndarray, step: int) -> None:
        minimum, maximum, number, total, total_squares = row[:_STATISTICS].tolist()
        if not np.isfinite([minimum, maximum]).all():
            return  # for a gradient that is not finite, the norm says so
        edges = np.linspace(minimum, minimum + _width(minimum, maximum), _BINS + 1)
        self._tracker.log_counts(
            name,
            counts=row[_STATISTICS:].astype(np.int64),
            edges=edges,
            minimum=minimum,
            maximum=maximum,
            total=total,
            total_squares=total_squares,
            step=step,
        )


def group_parameters(policy: nn.Module) -> dict[str, list[torch.Tensor]]:
    """The trained parameters, by the first two parts of their names: {'head/pose': [weight, bias]}."""
    groups: dict[str, list[torch.Tensor]] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            groups.setdefault("/".join(name.split(".")[:2]), []).append(parameter)
    return groups


def gradients_of(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


@torch.no_grad()
def summarize(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Minimum, maximum, number, sum, sum of squares and the counts in 64 bins of all values: float64 [5 + 64].

    Stays on the device, and copies one tensor at a time. The bins span `_width`, starting at the minimum.
    """
    extremes = torch.stack([torch.stack(t.aminmax()) for t in tensors]).double()  # [n, 2]
    minimum, maximum = extremes[:, 0].min(), extremes[:, 1].max()
    width = torch.maximum(maximum - minimum, 1e-3 * torch.maximum(minimum.abs(), maximum.abs())).clamp(min=1e-12)
    number = sum(t.numel() for t in tensors)
    total = torch.stack([t.sum(dtype=torch.float64) for t in tensors]).sum()
    squares = torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) ** 2 for t in tensors]).sum()
    counts = torch.zeros(_BINS, dtype=torch.float64, device=minimum.device)
    for tensor in tensors:
        places = (tensor.float() - minimum) / width  # in [0, 1]; 0-d tensors do not change a tensor's precision
        counts += torch.histc(places.clamp_(0, 1), _BINS, 0, 1)
    return torch.cat([torch.stack([minimum, maximum, torch.full_like(total, number), total, squares]), counts])


def _width(minimum: float, maximum: float) -> float:
    """The width of all bins together: the range or, if all values are (nearly) equal, enough to tell bins apart."""
    return max(maximum - minimum, 1e-3 * max(abs(minimum), abs(maximum)), 1e-12)
