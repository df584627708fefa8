"""Random numbers that are a pure function of (seed, epoch, sample), whoever asks for them and in what order."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, epochs: np.ndarray, samples: np.ndarray, stream: int, count: int) -> np.ndarray:
    """float64 [n, count] in [0, 1): the same for the same (seed, epoch, sample, stream).

    epochs, samples: int64 [n].
    `stream` keeps different uses apart. SplitMix64 (Steele, Lea and Flood, 2014) mixes the key, which makes one
    number from each counter without any state to carry.
    """
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.array([seed], np.uint64)) + np.uint64(stream))
        key = _mix(_mix(key + epochs.astype(np.uint64)) + samples.astype(np.uint64))
        counters = key[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = z + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
