"""Random numbers that are a pure function of (seed, epoch, sample), whoever draws them, where and in what order."""

from __future__ import annotations

import math
from enum import IntEnum

import torch


class Stream(IntEnum):
    """Keeps the different uses of a key apart: each draws its own numbers."""

    AUGMENTATION = 1
    FLOW_NOISE = 2
    FLOW_TIME = 3
    FLOW_SAMPLING = 4
    CACHED_VERSION = 5
    VIEWS = 6


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number; torch multiplies int64 modulo 2^64."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def sample_keys(seed: int, epochs: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """The keys that determine all random numbers of a sample in an epoch: int64 [n]; epochs, samples: int64 [n]."""
    return _mix(_mix(_mix(torch.full_like(samples, seed)) + epochs) + samples)


def uniform(keys: torch.Tensor, stream: Stream, count: int) -> torch.Tensor:
    """float64 [n, count] in [0, 1) for keys int64 [n], the same on every device.

    SplitMix64 (Steele, Lea and Flood, 2014) mixes the key; it turns each counter into a number and carries no state.
    """
    start = _mix(_mix(keys) + stream)
    counters = start[:, None] + torch.arange(1, count + 1, device=keys.device) * _GOLDEN
    return _shift(_mix(counters), 11).double() * 2.0**-53


def normal(keys: torch.Tensor, stream: Stream, count: int) -> torch.Tensor:
    """float64 [n, count], standard normal (Box and Muller, 1958); keys and stream as in `uniform`."""
    u, v = uniform(keys, stream, 2 * count).chunk(2, dim=-1)
    return (-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * math.pi * v)


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = z + _GOLDEN
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, by: int) -> torch.Tensor:
    """A logical shift to the right; torch's own copies the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)
