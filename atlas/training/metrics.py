"""Means over the valid elements of all processes, so that one process and eight give the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

from atlas.system.device_copies import send
from atlas.types import ActionSpec, LossTerms

ERROR_NAMES = (
    "pose_l2_error",
    "pose_l1_error",
    "gripper_error",
    "gripper_accuracy",
    "position_error_mm",
    "rotation_error_deg",
)


class LossMeter:
    """The mean of each loss term since it was last read, weighted by valid action steps. Holds sums on the device."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        """names: of the terms, in `LossTerms` or its `extra`."""
        self._names = tuple(names)
        self._sums = torch.zeros(len(self._names) + 1, dtype=torch.float64, device=device)

    def add(self, terms: LossTerms) -> None:
        n = terms.n_valid.detach().double()
        values = [terms.extra[name] if name in terms.extra else getattr(terms, name) for name in self._names]
        self._sums += torch.cat([torch.stack([v.detach().double() for v in values]) * n, n[None]])

    @property
    def sums(self) -> dict[str, torch.Tensor]:
        """What was added since it was last read, on this process."""
        return {"losses": self._sums}

    def set_sums(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `sums` gave; with nothing in it, from zero."""
        if "losses" in sums:
            self._sums = sums["losses"].to(self._sums)

    def read(self, accelerator: Accelerator, prefix: str) -> dict[str, float]:
        """`prefix/loss` and so on, over all processes; starts anew. Every process must call it."""
        sums = accelerator.reduce(self._sums, "sum").tolist()
        self._sums = torch.zeros_like(self._sums)
        return {f"{prefix}/{name}": sums[i] / max(sums[-1], 1) for i, name in enumerate(self._names)}


class ActionErrors:
    """How far sampled actions are from the recorded ones, in the ActionSpec's units and in physical ones.

    Sums per task, so that the means per task come from the same numbers as the means over all.
    """

    def __init__(self, spec: ActionSpec, tasks: list[str], device: torch.device) -> None:
        self._spec, self._tasks = spec, tasks
        self._sums = torch.zeros(len(tasks), len(ERROR_NAMES) + 1, dtype=torch.float64, device=device)

    def add(self, predicted: torch.Tensor, target: torch.Tensor, is_pad: torch.Tensor, instructions: list[str]) -> None:
        """predicted, target float [B, H, A]; is_pad bool [B, H]."""
        spec = self._spec
        predicted, target = predicted.double(), target.double()
        error = predicted[..., spec.pose] - target[..., spec.pose]
        closing = (predicted[..., spec.gripper].clamp(-1, 1) + 1) / 2  # P(close)
        label = (target[..., spec.gripper] > 0).double()
        position, rotation = slice(*spec.position), slice(*spec.rotation)
        offset = (predicted[..., position] - target[..., position]).norm(dim=-1) * spec.position_unit_m
        angle = _rotation_angle(predicted[..., rotation], target[..., rotation], spec.rotation_unit_rad)
        values = torch.stack(
            [
                error.norm(dim=-1),
                error.abs().mean(-1),
                (closing - label).abs(),
                ((closing > 0.5) == (label > 0.5)).double(),
                offset * 1000,
                torch.rad2deg(angle),
                torch.ones_like(offset),
            ],
            dim=-1,
        )  # [B, H, names + 1]
        per_sample = (values * (~is_pad).unsqueeze(-1)).sum(1)
        rows = send(torch.tensor([self._tasks.index(text) for text in instructions]), per_sample.device)
        self._sums.index_add_(0, rows, per_sample)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """`val/…` over all tasks and `val/<task>/…`, over all processes. Every process must call it."""
        sums = accelerator.reduce(self._sums, "sum").cpu()
        metrics = _means("val", sums.sum(0), ERROR_NAMES)
        if len(self._tasks) > 1:
            for task, row in zip(self._tasks, sums, strict=True):
                if row[-1] > 0:
                    metrics |= _means(f"val/{task.replace(' ', '_')}", row, ERROR_NAMES)
        return metrics


def _means(prefix: str, sums: torch.Tensor, names: tuple[str, ...]) -> dict[str, float]:
    count = max(float(sums[-1]), 1.0)
    return {f"{prefix}/{name}": float(sums[i]) / count for i, name in enumerate(names)}


def _rotation_angle(a: torch.Tensor, b: torch.Tensor, unit_rad: float) -> torch.Tensor:
    """The geodesic distance (rad) of two axis-angle rotations [..., 3] given in units of `unit_rad`.

    Zero where the action has no rotation. By quaternions: cos(angle / 2) = |<qa, qb>|.
    """
    if a.shape[-1] == 0:
        return a.new_zeros(a.shape[:-1])
    qa, qb = _quaternion(a * unit_rad), _quaternion(b * unit_rad)
    # The sine from the difference keeps small angles exact, where an arccosine would lose them.
    sign = torch.where((qa * qb).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return 4 * torch.asin((0.5 * (qa - sign * qb).norm(dim=-1)).clamp(max=1))


def _quaternion(axis_angle: torch.Tensor) -> torch.Tensor:
    """[..., 3] rad to unit quaternions [..., 4], scalar first."""
    angle = axis_angle.norm(dim=-1, keepdim=True)
    return torch.cat([torch.cos(angle / 2), axis_angle / 2 * torch.sinc(angle / (2 * torch.pi))], dim=-1)
