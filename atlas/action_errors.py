"""Distances between a group of an action's numbers and the recorded one, in physical units.

Each function takes the group's numbers [..., n] and the recorded ones, both float64, and returns [...].
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from atlas.rotations import matrix_of_6d, to_quaternion
from atlas.types import ActionGroup, Kind

Measure = Callable[[ActionGroup, torch.Tensor, torch.Tensor], torch.Tensor]


def _gripper_error(group: ActionGroup, predicted: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    share, wanted = group.closed_share(predicted), group.closed_share(recorded)
    return (share - (wanted if group.continuous else (wanted > 0.5).double())).abs()[..., 0]


def _gripper_accuracy(group: ActionGroup, predicted: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    return ((group.closed_share(predicted) > 0.5) == (group.closed_share(recorded) > 0.5)).double()[..., 0]


def _position_error_mm(group: ActionGroup, predicted: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    return (predicted - recorded).norm(dim=-1) * group.unit * 1000


def _joint_error_deg(group: ActionGroup, predicted: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    return ((predicted - recorded).abs().mean(-1) * group.unit).rad2deg()


def _joint_error_percent(group: ActionGroup, predicted: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """The error in percent of a joint's whole range, from -100 to 100."""
    return (predicted - recorded).abs().mean(-1) / 2


def _rotation_error_deg(group: ActionGroup, predicted: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """The geodesic distance. For quaternions: cos(angle / 2) = |<qa, qb>|."""
    if group.form == "rotation_6d":  # for matrices, the Frobenius distance is 2 sqrt(2) sin(angle / 2)
        apart = (matrix_of_6d(predicted) - matrix_of_6d(recorded)).flatten(-2).norm(dim=-1)
        return (2 * torch.asin((apart / 8**0.5).clamp(max=1))).rad2deg()
    assert group.form is not None
    scale = 1.0 if group.form == "quaternion" else group.unit
    qa, qb = to_quaternion(predicted * scale, group.form), to_quaternion(recorded * scale, group.form)
    # Computing the sine from the difference keeps small angles exact; an arccosine would lose them.
    sign = torch.where((qa * qb).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return (4 * torch.asin((0.5 * (qa - sign * qb).norm(dim=-1)).clamp(max=1))).rad2deg()


MEASURES: dict[str, tuple[Kind, Measure]] = {
    "gripper_error": ("gripper", _gripper_error),
    "gripper_accuracy": ("gripper", _gripper_accuracy),
    "position_error_mm": ("position", _position_error_mm),
    "rotation_error_deg": ("rotation", _rotation_error_deg),
    "joint_error_deg": ("joints", _joint_error_deg),
    "joint_error_percent": ("joints", _joint_error_percent),
}
