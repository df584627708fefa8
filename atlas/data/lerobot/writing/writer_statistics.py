"""The statistics that a LeRobot dataset stores, per episode and in all; quantiles are exact, as in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
_LEVELS = 256


def of_numbers(values: np.ndarray) -> dict[str, Any]:
    """Statistics of a column [frames, D], as lists of D numbers."""
    values = values.astype(np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    found |= dict(zip(QUANTILES, quantiles, strict=True))
    return {name: [len(values)] if name == "count" else found[name].tolist() for name in NAMES}


def count_levels(images: np.ndarray) -> np.ndarray:
    """Count how often each value occurs in each channel of uint8 [n, H, W, 3]: int64 [3, 256]."""
    return np.stack([np.bincount(images[..., channel].reshape(-1), minlength=_LEVELS) for channel in range(3)])


def of_images(levels: np.ndarray, frames: int) -> dict[str, Any]:
    """Statistics of a camera from `count_levels`, summed over its frames: shape [3, 1, 1], for pixels in [0, 1]."""
    value = np.arange(_LEVELS) / (_LEVELS - 1)
    pixels = levels.sum(1)
    mean = levels @ value / pixels
    std = np.sqrt(np.maximum(levels @ value**2 / pixels - mean**2, 0))
    ends = levels.cumsum(1)  # how many pixels have this level or a lower one
    found: dict[str, Sequence[float]] = {"mean": mean.tolist(), "std": std.tolist()}
    found["min"] = [float(value[np.flatnonzero(channel)[0]]) for channel in levels]
    found["max"] = [float(value[np.flatnonzero(channel)[-1]]) for channel in levels]
    for name, q in QUANTILES.items():
        found[name] = [_quantile(channel, value, q) for channel in ends]
    return {name: [frames] if name == "count" else [[[v]] for v in found[name]] for name in NAMES}


def _quantile(ends: np.ndarray, value: np.ndarray, q: float) -> float:
    """Interpolates between the two nearest of the sorted pixels, as np.quantile does."""
    place = q * (int(ends[-1]) - 1)
    low, high = value[np.searchsorted(ends, [np.floor(place), np.ceil(place)], side="right")]
    return float(low + (high - low) * (place - np.floor(place)))


def flattened(statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{feature: {name: value}} as the columns of the episodes' table."""
    return {f"stats/{key}/{name}": value for key, values in statistics.items() for name, value in values.items()}
