"""Rotations in the forms that datasets, policies and robots have them in, and what makes a path of them continuous.

Between forms they are unit quaternions [..., 4] with their real part first. All functions take and return tensors of
any leading shape, in radians; formulas as in Shuster, "A Survey of Attitude Representations", 1993.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

_TINY = 1e-12


def to_quaternion(values: torch.Tensor, form: str) -> torch.Tensor:
    """Rotations [..., n] of a form as unit quaternions [..., 4], real part first.

    axis_angle [3]; euler_abc [3], about the fixed axes a, b, c one after the other, euler_ABC about the moving ones;
    quaternion [4] with its real part last, quaternion_wxyz with it first; matrix [9], row by row; rotation_6d [6], a
    matrix's first two columns one after the other, rotation_6d_rows its first two rows.
    """
    if form == "axis_angle":
        angle = values.norm(dim=-1, keepdim=True)
        return torch.cat([torch.cos(angle / 2), values / 2 * torch.sinc(angle / (2 * torch.pi))], dim=-1)
    if form == "euler_xyz":  # written out, as most use it
        (cx, cy, cz), (sx, sy, sz) = (f(values / 2).unbind(-1) for f in (torch.cos, torch.sin))
        real, x = cx * cy * cz + sx * sy * sz, sx * cy * cz - cx * sy * sz
        return torch.stack([real, x, cx * sy * cz + sx * cy * sz, cx * cy * sz - sx * sy * cz], -1)
    if form.startswith("euler_"):
        return _of_euler(values, form.removeprefix("euler_"))
    if form == "quaternion":
        return _unit(values.roll(1, dims=-1))
    if form == "quaternion_wxyz":
        return _unit(values)
    if form == "matrix":
        return _of_matrix(values.unflatten(-1, (3, 3)))
    if form == "rotation_6d":
        return _of_matrix(matrix_of_6d(values))
    assert form == "rotation_6d_rows", form
    return _of_matrix(matrix_of_6d(values).transpose(-1, -2))


def from_quaternion(quaternion: torch.Tensor, form: str) -> torch.Tensor:
    """The inverse of `to_quaternion`, for the forms that policies have: axis_angle, euler_xyz, quaternion, rotation_6d.

    The sign is kept: of an axis-angle whose quaternion has a negative real part the angle is between pi and 2 pi, so
    that a continuous path of quaternions gives a continuous path of axis-angles, except through whole turns.
    """
    real, vector = quaternion[..., :1], quaternion[..., 1:]
    if form == "quaternion":
        return quaternion.roll(-1, dims=-1)
    if form == "axis_angle":
        sine = vector.norm(dim=-1, keepdim=True)
        angle = 2 * torch.atan2(sine, real)
        return torch.where(sine > _TINY, vector / sine.clamp(min=_TINY) * angle, 2 * vector)
    matrix = _matrix(quaternion)
    if form == "rotation_6d":
        return matrix[..., :, :2].transpose(-1, -2).flatten(-2)
    assert form == "euler_xyz", form
    pitch = torch.asin((-matrix[..., 2, 0]).clamp(-1, 1))
    roll = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    return torch.stack([roll, pitch, torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])], -1)


def multiply(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The rotation `first` after `second`: quaternions [..., 4], real parts first."""
    w, v = first[..., :1], first[..., 1:]
    u, s = second[..., :1], second[..., 1:]
    v, s = torch.broadcast_tensors(v, s)
    return torch.cat([w * u - (v * s).sum(-1, keepdim=True), w * s + u * v + torch.linalg.cross(v, s, dim=-1)], -1)


def inverse(quaternion: torch.Tensor) -> torch.Tensor:
    """The rotation back."""
    return quaternion * quaternion.new_tensor([1.0, -1.0, -1.0, -1.0])


def nearest_half(quaternion: torch.Tensor) -> torch.Tensor:
    """Return, of each quaternion and its opposite, which are the same rotation, that which turns by at most pi."""
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def matrix_of_6d(columns: torch.Tensor) -> torch.Tensor:
    """Rotations given as their first two columns [..., 6], made orthogonal: [..., 3, 3] (Zhou et al., 2019)."""
    first = normalize(columns[..., :3], dim=-1)
    second = normalize(columns[..., 3:] - (first * columns[..., 3:]).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], -1)


def path_signs(quaternions: torch.Tensor, episodes: Sequence[slice]) -> torch.Tensor:
    """1 or -1 for each of quaternions [N, 4], so that every episode's rows follow one another without a jump, and
    begin on the side on which most of all rows are: [N, 1].

    That side is the principal direction of the rows (Markley et al., 2007), with a real part that is not negative.
    """
    main = torch.linalg.eigh(quaternions.T @ quaternions)[1][:, -1]
    main = main * (-1.0 if main[torch.argmax(main.abs())] < 0 else 1.0)
    if abs(float(main[0])) > 1e-6 and main[0] < 0:
        main = -main
    signs = torch.ones(len(quaternions), 1, dtype=quaternions.dtype)
    for rows in episodes:
        path = quaternions[rows]
        turns = torch.where((path[1:] * path[:-1]).sum(-1) < 0, -1.0, 1.0).to(path)
        begins = torch.where((path[:1] @ main) < 0, -1.0, 1.0).to(path)
        signs[rows] = torch.cat([begins, turns]).cumprod(0)[:, None]
    return signs


def unwrapped(angles: torch.Tensor, episodes: Sequence[slice]) -> torch.Tensor:
    """Angles [N, D] plus whole turns, so that no angle of an episode jumps by more than half a turn, and each episode
    begins near the mean direction of all rows."""
    turn, found = 2 * math.pi, angles.clone()
    mean = torch.atan2(angles.sin().mean(0), angles.cos().mean(0))
    for rows in episodes:
        path = angles[rows]
        steps = torch.round((path[1:] - path[:-1]) / turn)
        begins = torch.round((path[:1] - mean) / turn)
        found[rows] = path - turn * torch.cat([begins, steps]).cumsum(0)
    return found


def _of_euler(angles: torch.Tensor, axes: str) -> torch.Tensor:
    turns = []
    for place, axis in enumerate(axes.lower()):
        half = angles[..., place] / 2
        parts = [torch.cos(half), *(torch.zeros_like(half) for _ in range(3))]
        parts["wxyz".index(axis)] = torch.sin(half)
        turns.append(torch.stack(parts, -1))
    first, second, third = turns
    if axes.isupper():  # about moving axes: the last turn is made first, as about fixed ones in reverse
        first, third = third, first
    return multiply(third, multiply(second, first))


def _of_matrix(matrix: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [..., 3, 3], nearly orthogonal, as quaternions: the largest of four parts is found first."""
    m = matrix
    trace = m.diagonal(dim1=-2, dim2=-1)
    x, y, z = trace.unbind(-1)
    squares = torch.stack([1 + x + y + z, 1 + x - y - z, 1 - x + y - z, 1 - x - y + z], -1)  # 4 w^2, 4 x^2, …
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    w, i, j, k = squares.unbind(-1)
    rows = torch.stack([torch.stack(r, -1) for r in ((w, a, b, c), (a, i, d, e), (b, d, j, f), (c, e, f, k))], -2)
    chosen = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    return nearest_half(_unit(rows.gather(-2, chosen).squeeze(-2)))


def _matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """[..., 4] to [..., 3, 3]."""
    w, x, y, z = _unit(quaternion).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _unit(quaternion: torch.Tensor) -> torch.Tensor:
    return quaternion / quaternion.norm(dim=-1, keepdim=True).clamp(min=_TINY)
