"""AdamW and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from atlas.config import TrainingConfig
from atlas.policies.base import Policy


def make_optimizer(policy: Policy, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay for matrices and kernels only, not for norms and biases.

    Each group has a `factor` for the learning rate, as the policy says. With `fused_optimizer` one kernel updates many
    weights at once; without it torch chooses (on GPUs a few kernels for all of them), with slightly different rounding.
    Loaded state keeps its moments and takes on this config's settings.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in trained_parameters(policy):
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((decay, policy.learning_rate_factor(name)), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": p, "weight_decay": decay, "factor": factor} for (decay, factor), p in groups.items()],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        fused=config.fused_optimizer,
    )
    optimizer.register_load_state_dict_pre_hook(_with_own_settings)
    optimizer.register_load_state_dict_post_hook(_in_the_weights_formats)
    return optimizer


def trained_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The names and parameters that an optimizer gets, all of them float32: bfloat16 would lose small steps."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, f"{name} is trained in {parameter.dtype}, which loses small steps"
            yield name, parameter


def _with_own_settings(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state dict with the optimizer's own settings: torch would take over those it was saved with."""
    own, saved = optimizer.state_dict()["param_groups"], state["param_groups"]
    if len(own) != len(saved):
        return state  # torch will refuse it
    return {**state, "param_groups": [{**o, "params": s["params"]} for o, s in zip(own, saved, strict=True)]}


def _in_the_weights_formats(optimizer: torch.optim.Optimizer) -> None:
    """Put each moment into its weight's memory format. Files do not store it, and the fused kernel, which walks through
    both in memory order, would pair a channels-last weight with the wrong moments."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value).detach()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def warmup_for(config: TrainingConfig, steps: int) -> int:
    """The steps of the warm-up of a run of so many: a tenth of them at most, or as `cosine_from_start` shrinks it."""
    if config.schedule == "cosine_from_start":
        return int(config.warmup_steps * min(1.0, steps / (config.decay_steps or steps)))
    return min(config.warmup_steps, steps // 10)


def learning_rate(step: int, steps: int, warmup_steps: int, config: TrainingConfig) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then a cosine down, which stays low after `steps`."""
    if config.schedule == "cosine_from_start":
        return _from_start(step, min(config.decay_steps or steps, steps), warmup_steps, config)
    peak, low = config.learning_rate, _lowest(config)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def _from_start(step: int, decay_steps: int, warmup_steps: int, config: TrainingConfig) -> float:
    """Scale as in LeRobot: the warm-up starts at 1 / (its steps + 1), and the cosine already runs during it."""
    peak, low = config.learning_rate, _lowest(config)
    if step < warmup_steps:
        first = 1 / (warmup_steps + 1)
        return peak * ((first - 1) * (1 - step / warmup_steps) + 1)
    fallen = 0.5 * (1 + math.cos(math.pi * min(step, decay_steps) / decay_steps))
    return peak * ((1 - low) * fallen + low)


def _lowest(config: TrainingConfig) -> float:
    """The lowest rate as a share of the peak."""
    return 0.01 if config.final_learning_rate is None else config.final_learning_rate / config.learning_rate
