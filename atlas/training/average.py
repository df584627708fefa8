"""An exponential moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from atlas.policies.base import Policy


class WeightAverage:
    """A copy of the policy whose weights follow the trained ones slowly; the copy is validated and saved.

    The decay grows with the steps, (1 + t) / (10 + t), up to `decay`, so that the first weights are soon forgotten.
    """

    def __init__(self, policy: Policy, decay: float) -> None:
        self.policy = twin_of(policy)
        self._decay = decay

    def update(self, policy: Policy, step: int) -> None:
        """Call it after optimizer step `step` (from 0)."""
        pairs = [(a, p) for a, p in zip(self.policy.parameters(), policy.parameters(), strict=True) if p.requires_grad]
        follow([a for a, _ in pairs], [p for _, p in pairs], self._decay, step)


def twin_of(policy: Policy) -> Policy:
    """A copy in eval mode, without gradients, that shares with the policy everything that training does not change.

    Make it before the policy is wrapped: a copy of what a wrapper puts in its place would lead back to it.
    """
    return copy.deepcopy(policy, _shared(policy)).eval().requires_grad_(False)


@torch.no_grad()
def follow(averages: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], decay: float, step: int) -> None:
    """Move averages, in place, towards the weights of the same shapes, after optimizer step `step` (from 0)."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averages), [w.detach() for w in weights], 1 - decay)


def _shared(policy: Policy) -> dict[int, object]:
    """The parts that a copy shares with the policy, as deepcopy's memo: parts that training does not change."""
    frozen_parts = [m for m in policy.modules() if all(not p.requires_grad for p in m.parameters())]
    frozen_weights = [p for p in policy.parameters() if not p.requires_grad]
    return {id(shared): shared for shared in (*frozen_parts, *frozen_weights)}
