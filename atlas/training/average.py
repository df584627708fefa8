"""An exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch

from atlas.policy import AtlasPolicy


class WeightAverage:
    """A copy of the policy whose weights follow the trained ones slowly; it is what is validated and saved.

    The decay grows with the steps, (1 + t) / (10 + t), up to `decay`, so that the first weights are soon forgotten.
    """

    def __init__(self, policy: AtlasPolicy, decay: float) -> None:
        self.policy = copy.deepcopy(policy, _shared(policy)).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, policy: AtlasPolicy, step: int) -> None:
        """After optimizer step `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        pairs = [(a, p) for a, p in zip(self.policy.parameters(), policy.parameters(), strict=True) if p.requires_grad]
        torch._foreach_lerp_([a for a, _ in pairs], [p.detach() for _, p in pairs], 1 - decay)


def _shared(policy: AtlasPolicy) -> dict[int, object]:
    """What a copy has in common with the policy, as deepcopy's memo: what no training changes, such as a backbone."""
    frozen_parts = [m for m in policy.modules() if all(not p.requires_grad for p in m.parameters())]
    frozen_weights = [p for p in policy.parameters() if not p.requires_grad]
    return {id(shared): shared for shared in (*frozen_parts, *frozen_weights)}
