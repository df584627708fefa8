"""Success rates and differences between them: intervals, exact tests, and the episodes needed to see a difference.

Two policies that play the same episodes are compared in pairs: only the episodes in which one succeeds and the other
fails show which is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

Z95 = 1.959964  # 95% of the standard normal distribution lies within ± this
_Z_POWER = 0.841621  # 80% of it lies below this
_POWER = 0.8
_EXACT_UP_TO = 20_000  # episodes; beyond this the approximation is right to a fraction of a percent


def wilson_interval(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, 1927); 95% with the default z."""
    if episodes == 0:
        return 0.0, 1.0
    p, n = successes / episodes, episodes
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At rates of 0 and 1 a bound is the rate itself, which rounding may just miss.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


# ---- the same episodes -----------------------------------------------------------------------------------


def mcnemar_p(first_only: int, second_only: int) -> float:
    """The exact two-sided p of McNemar's test (1947), with the binomial distribution instead of chi-squared's.

    first_only, second_only: episodes in which only the first or only the second succeeds. If neither policy is better,
    each such episode is a fair coin toss.
    """
    n, least = first_only + second_only, min(first_only, second_only)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def paired_interval(both: int, first_only: int, second_only: int, neither: int) -> tuple[float, float]:
    """The 95% interval of first rate - second rate on the same episodes: method 10 of Newcombe (1998).

    R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired
    data, Statistics in Medicine 17, 2635-2650: joins the Wilson intervals of the two rates, with the correlation of the
    outcomes.
    """
    n = both + first_only + second_only + neither
    first, second = both + first_only, both + second_only
    product = first * (n - first) * second * (n - second)
    together: float = both * neither - first_only * second_only
    if together > 0:
        together = max(0.0, together - n / 2)  # the paper's continuity correction
    correlation = together / math.sqrt(product) if product else 0.0
    return _joined(first / n, wilson_interval(first, n), second / n, wilson_interval(second, n), correlation)


def episodes_to_see(first_only: float, second_only: float, level: float = 0.05) -> int | None:
    """The number of episodes that the exact McNemar test needs to find a difference in 80 of 100 cases; None where
    there is none.

    first_only, second_only: the shares of episodes in which only the first or only the second succeeds. level: of the
    test. The power is over all outcomes, with a random number of telling episodes; beyond 20,000 episodes it is
    approximated (Connor, Biometrics 43, 1987).
    """
    telling, difference = first_only + second_only, abs(first_only - second_only)
    if difference < 1e-12:
        return None
    z = _normal_quantile(1 - level / 2)
    spread = z * math.sqrt(telling) + _Z_POWER * math.sqrt(max(0.0, telling - difference**2))
    about = max(1, math.ceil((spread / difference) ** 2))
    if about > _EXACT_UP_TO:
        return about
    low, high = 0, about
    while _mcnemar_power(high, first_only, second_only, level) < _POWER:
        low, high = high, math.ceil(1.3 * high)
    while high - low > 1:  # the power hardly ever falls as episodes are added
        middle = (low + high) // 2
        if _mcnemar_power(middle, first_only, second_only, level) < _POWER:
            low = middle
        else:
            high = middle
    return high


def _mcnemar_power(n: int, first_only: float, second_only: float, level: float) -> float:
    """The probability that n episodes give a p below the level, with these shares of telling episodes."""
    telling = first_only + second_only
    numbers = _binomial(n, min(1.0, telling))
    power = 0.0
    for m in np.flatnonzero(numbers > 1e-10):
        most = _most_allowed(int(m), level)
        if most >= 0:
            chances = _binomial(int(m), first_only / telling)
            power += float(numbers[m] * (chances[: most + 1].sum() + chances[m - most :].sum()))
    return power


@cache
def _most_allowed(m: int, level: float) -> int:
    """The largest count of the rarer outcome of m fair coin tosses with a p below the level; -1 where there is none."""
    return int(np.sum(2 * np.cumsum(_binomial(m, 0.5)[: m // 2 + 1]) < level)) - 1


def _binomial(n: int, p: float) -> np.ndarray:
    """The probabilities of 0 to n successes: float64 [n + 1]."""
    k = np.arange(n + 1)
    if p <= 0 or p >= 1:
        return (k == (n if p >= 1 else 0)).astype(float)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return np.exp(logs[n] - logs[k] - logs[n - k] + k * math.log(p) + (n - k) * math.log1p(-p))


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


# ---- other episodes --------------------------------------------------------------------------------------


def fisher_p(first: int, first_of: int, second: int, second_of: int) -> float:
    """Fisher's exact two-sided p for `first` successes of `first_of` episodes against `second` of `second_of` others.

    Two-sided: of all tables with these totals, those that are no more probable than the one seen.
    """
    successes, episodes = first + second, first_of + second_of
    low, high = max(0, successes - second_of), min(first_of, successes)
    weights = {k: math.comb(first_of, k) * math.comb(second_of, successes - k) for k in range(low, high + 1)}
    return sum(w for w in weights.values() if w <= weights[first]) / math.comb(episodes, successes)


def unpaired_interval(first: int, first_of: int, second: int, second_of: int) -> tuple[float, float]:
    """The 95% interval of first rate - second rate on different episodes: method 10 of Newcombe (1998).

    R. G. Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine
    17, 873-890.
    """
    bounds = wilson_interval(first, first_of), wilson_interval(second, second_of)
    return _joined(first / first_of, bounds[0], second / second_of, bounds[1], correlation=0.0)


def _joined(
    first: float,
    first_bounds: tuple[float, float],
    second: float,
    second_bounds: tuple[float, float],
    correlation: float,
) -> tuple[float, float]:
    """The interval of a difference, from the intervals of its two rates."""
    below_first, above_first = first - first_bounds[0], first_bounds[1] - first
    below_second, above_second = second - second_bounds[0], second_bounds[1] - second

    def length(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    difference = first - second
    return difference - length(below_first, above_second), difference + length(above_first, below_second)


# ---- several comparisons ---------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """p values, in the given order, adjusted for their number (Holm, 1979): all below 0.05 may be called differences,
    with 95% confidence that none of them is by chance.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
