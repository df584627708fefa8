"""Whether one of two policies is better, asked after every episode, with an error rate that holds whenever one stops.

Both are tried on the same episodes, of which those count that just one of them solves. If neither is better, each of
these is a fair coin. The evidence against that is a bet: the probability of what was seen under a coin of unknown bias
(Jeffreys' prior, Beta(1/2, 1/2)) over that under the fair one. Under the fair one it is a martingale that begins at 1,
so that it ever reaches 1/a in at most a share a of all comparisons (Ville, 1939), however often one looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

ERROR_RATE = 0.05  # the share of comparisons of equally good policies in which a difference is claimed


@dataclass
class SequentialComparison:
    """Counts pairs of outcomes as they come."""

    error_rate: float = ERROR_RATE
    first_only: int = 0
    second_only: int = 0
    alike: int = 0  # episodes that both solve or neither does

    def add(self, first: bool, second: bool) -> None:
        """The outcomes of one episode."""
        self.first_only += first and not second
        self.second_only += second and not first
        self.alike += first == second

    @property
    def episodes(self) -> int:
        return self.first_only + self.second_only + self.alike

    @property
    def evidence(self) -> float:
        """The factor by which the outcomes are more probable than under equal policies; 1 at the start."""
        return _evidence(self.first_only, self.second_only)

    @property
    def clear(self) -> bool:
        return self.evidence >= 1 / self.error_rate

    def hopeless(self, left: int) -> bool:
        """Whether no outcome of so many further episodes could make it clear."""
        more = max(
            _evidence(self.first_only + left, self.second_only), _evidence(self.first_only, self.second_only + left)
        )
        return not self.clear and more < 1 / self.error_rate


@cache
def _evidence(first: int, second: int) -> float:
    log = _log_beta(first + 0.5, second + 0.5) - _log_beta(0.5, 0.5) + (first + second) * math.log(2)
    return math.exp(min(log, 700.0))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
