"""The meaning of a gripper's numbers if a source does not say it: one answer for all formats and for the checks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CLEAR = 0.2  # a correlation of the gripper's action with the fingers' motion that is not chance
_CLEARLY_THERE = 0.5  # the same with the fingers' position, which other things influence as well
_FINGERS = (6, 8)  # in LIBERO's proprio
_SLACK = 1e-3
_BOTH_ENDS = 0.5  # values that span less show only one end, or are in another unit


def is_zero_to_one(values: np.ndarray) -> bool:
    """Whether a gripper's values lie between 0 and 1, as in OpenVLA's loader and many robots, and not -1 and 1."""
    low, high = float(values.min()), float(values.max())
    return low >= -_SLACK and high <= 1 + _SLACK and high - low > _BOTH_ENDS


def open_and_closed(grippers: Sequence[np.ndarray], proprio: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """The open and closed values of a gripper that goes from -1 to 1 or `is_zero_to_one`. For the latter, the fingers'
    motion tells which end is which; None if it does not tell.

    grippers: [T] each, of some episodes; proprio: [T, P] each, of the same.
    """
    if not is_zero_to_one(np.concatenate(grippers)):
        return -1.0, 1.0
    agreement = fingers_follow(grippers, proprio)
    if agreement is None or abs(agreement) <= CLEAR:
        return None
    return (1.0, 0.0) if agreement > 0 else (0.0, 1.0)


def map_gripper(values: np.ndarray, opened: float, closed: float) -> np.ndarray:
    """Values mapped linearly, so that open is -1 and closed is +1; bit for bit unchanged if they already are."""
    return values if (opened, closed) == (-1.0, 1.0) else 2 * (values - opened) / (closed - opened) - 1


def fingers_follow(grippers: Sequence[np.ndarray], proprio: Sequence[np.ndarray]) -> float | None:
    """Correlation of the gripper's action with the fingers' opening that follows; negative if +1 closes them.

    None if proprio has no pair of fingers that move against each other, like the last two numbers of LIBERO's.
    """
    first, end = _FINGERS
    if not len(proprio) or proprio[0].shape[1] != end:
        return None
    fingers = [each[:, first:end].astype(np.float64) for each in proprio]
    both = np.concatenate(fingers)
    if both.std(0).min() < 1e-5 or np.corrcoef(both.T)[0, 1] > -0.9:
        return None
    opening_is = np.sign(both[:, 0].mean() - both[:, 1].mean())
    commanded = np.concatenate([gripper[:-1] for gripper in grippers]).astype(np.float64)
    apart = [(pair[:, 0] - pair[:, 1]) * opening_is for pair in fingers]
    opens = _correlation(commanded, np.concatenate([np.diff(each) for each in apart]))
    if opens is not None and abs(opens) > CLEAR:
        return opens
    # In a long episode with one closing, the moment itself hardly counts; the fingers' position afterwards does.
    is_open = _correlation(commanded, np.concatenate([each[1:] for each in apart]))
    return is_open if is_open is not None and abs(is_open) > _CLEARLY_THERE else opens


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    return None if a.std() < 1e-6 or b.std() < 1e-9 else float(np.corrcoef(a, b)[0, 1])
