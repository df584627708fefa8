"""Biases that cannot be learned, and would drift."""

from __future__ import annotations

import torch
from torch import nn


def hold_bias(bias: torch.Tensor) -> None:
    """Give a bias that a softmax cancels a gradient of exactly zero.

    Its true gradient is zero, and the computed one is rounding noise. AdamW divides gradients by their size, so it
    would turn that noise into full-size steps, and each number of processes would end with different weights.
    """
    if bias.requires_grad:
        bias.register_hook(torch.zeros_like)


def hold_key_bias(bias: torch.Tensor) -> None:
    """`hold_bias` for the keys' part of an attention layer's bias, [queries, keys, values].

    A common bias of all keys adds the same to each of a query's scores. (Not if keys are then normalised or rotated.)
    """
    if bias.requires_grad:
        bias.register_hook(_without_keys)


def hold_key_biases(policy: nn.Module) -> None:
    """`hold_key_bias` for each of torch's attention layers in it."""
    for module in policy.modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_bias is not None:
            hold_key_bias(module.in_proj_bias)


def _without_keys(gradient: torch.Tensor) -> torch.Tensor:
    """[3 dim] with zeros in the middle."""
    queries, keys, values = gradient.chunk(3)
    return torch.cat([queries, torch.zeros_like(keys), values])
