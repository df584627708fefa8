"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch

from atlas.config import TrainingConfig
from atlas.policy import AtlasPolicy


def make_optimizer(policy: AtlasPolicy, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay for matrices and kernels only, not for norms and biases.

    Each group has a `factor` of the learning rate, as the policy says.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((decay, policy.learning_rate_factor(name)), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "weight_decay": decay, "factor": factor} for (decay, factor), p in groups.items()],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def learning_rate(step: int, max_steps: int, warmup_steps: int, peak: float) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
